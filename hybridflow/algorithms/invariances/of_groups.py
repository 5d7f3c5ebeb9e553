"""Checks of advantages and filters: parts that see scored groups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from hybridflow.algorithms.advantages import group_rewards
from hybridflow.algorithms.invariances.groups import EXTREME, ORDINARY, make_groups, turn
from hybridflow.algorithms.invariances.outcome import BrokenError, Check, Outcome, compare, run_checks
from hybridflow.types import Group

Rewards = Sequence[Sequence[float | None]]


def check_advantage(advantage: Any) -> Iterator[Outcome]:
    """Outcomes of the whole suite, in order."""
    groups = make_groups(ORDINARY)

    def against(others: list[Group], what: str, *, turned: bool = False) -> str:
        expected, found = _advantages(advantage, groups), _advantages(advantage, others, turned=turned)
        return compare(expected, found, what, "advantages")

    needed: dict[str, Check] = {
        "ordinary rewards": lambda: _check_numbers(advantage, ORDINARY),
        "inputs untouched": lambda: _check_untouched(advantage, groups),
    }
    promised: dict[str, Check] = {
        "repeatable": lambda: against(groups, "called twice"),
        "order of groups": lambda: against(groups[::-1], "groups in reverse"),
        "order of members": lambda: against([turn(group) for group in groups], "members in reverse", turned=True),
        "equal rewards": lambda: _check_numbers(advantage, EXTREME),
        "no groups": lambda: _check_numbers(advantage, ()),
    }
    yield from run_checks(needed, promised)


def check_filter(keep: Any) -> Iterator[Outcome]:
    """Outcomes of the whole suite, in order."""
    groups, extremes = make_groups(ORDINARY), make_groups(EXTREME)

    def against(others: list[Group], what: str) -> str:
        for group, other in zip([*groups, *extremes], others, strict=True):
            one, two = keep(group), keep(other)
            if one != two:
                raise BrokenError(f"{what}: group {group.group_id} gets {two!r} where it got {one!r}")
        return f"{len(others)} groups, the same reasons"

    needed: dict[str, Check] = {
        "ordinary groups": lambda: _tell_reasons(keep, groups),
        "inputs untouched": lambda: _check_untouched(lambda groups, _: [keep(group) for group in groups], groups),
    }
    promised: dict[str, Check] = {
        "repeatable": lambda: against([*groups, *extremes], "called twice"),
        "order of members": lambda: against([turn(group) for group in (*groups, *extremes)], "members in reverse"),
        "equal rewards": lambda: _tell_reasons(keep, extremes),
    }
    yield from run_checks(needed, promised)


def _advantages(advantage: Any, groups: list[Group], *, turned: bool = False) -> dict[str, float | None]:
    found = advantage(groups, [group_rewards(group) for group in groups])
    places: dict[str, float | None] = {}
    for group, values in zip(groups, found, strict=True):
        in_order = values[::-1] if turned else values
        places |= {f"member {index} of group {group.group_id}": value for index, value in enumerate(in_order)}
    return places


def _check_numbers(advantage: Any, rewards: Rewards) -> str:
    groups = make_groups(rewards)
    found = advantage(groups, [list(of_group) for of_group in rewards])
    if len(found) != len(groups) or any(len(v) != len(r) for v, r in zip(found, rewards, strict=True)):
        shape = [len(values) for values in found]
        raise BrokenError(f"it gives {shape} numbers for groups of {[len(of_group) for of_group in rewards]} members")
    numbers = []
    for group, values, of_group in zip(groups, found, rewards, strict=True):
        for value, reward in zip(values, of_group, strict=True):
            if reward is None and value is not None:
                raise BrokenError(f"{value} for an unknown reward of group {group.group_id}: it must be None")
            if value is not None and not math.isfinite(value):
                raise BrokenError(f"{value} for reward {reward} of group {group.group_id}, rewards {[*of_group]}")
            numbers += [] if value is None else [value]
    return (
        f"{len(numbers)} numbers from {min(numbers):.3g} to {max(numbers):.3g}" if numbers else "nothing, and no error"
    )


def _tell_reasons(keep: Any, groups: list[Group]) -> str:
    reasons = [keep(group) for group in groups]
    for group, reason in zip(groups, reasons, strict=True):
        if reason is not None and not (isinstance(reason, str) and reason):
            raise BrokenError(f"it returned {reason!r} for group {group.group_id}: a name or None must be")
    told = sorted({reason for reason in reasons if reason is not None})
    return f"{reasons.count(None)} of {len(groups)} groups stay" + (f"; {', '.join(told)}" if told else "")


def _check_untouched(call: Any, groups: list[Group]) -> str:
    rewards = [group_rewards(group) for group in groups]
    before, before_rewards = [_copy(group) for group in groups], [[*of_group] for of_group in rewards]
    call(groups, rewards)
    if rewards != before_rewards or [_copy(group) for group in groups] != before:
        raise BrokenError("it changes the groups or their rewards, which others read too")
    return f"{len(groups)} groups"


def _copy(group: Group) -> bytes:
    """The group as bytes."""
    members = [(member.completion, member.verdict) for member in group.members]
    return msgspec.msgpack.encode((group.group_id, group.prompt, members))
