"""A user's own advantage and filter of groups."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hybridflow.algorithms.advantages import group_rewards
from hybridflow.algorithms.own.function import OwnFunction, find_own
from hybridflow.types import Group

_REASON = re.compile(r"[A-Za-z][\w-]{0,59}")
"""It is part of a metric's name, so there must not be many of them."""


@dataclass(frozen=True)
class _OnGroups:
    key: ClassVar[str]
    offered: ClassVar[tuple[str, ...]]
    call: str
    """"module:function"."""
    module_folders: Sequence[str] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    function: OwnFunction = field(init=False, repr=False)

    def __post_init__(self) -> None:
        found = find_own(self.key, self.call, self.offered, self.parameters, self.module_folders)
        object.__setattr__(self, "function", found)


@dataclass(frozen=True)
class OwnAdvantage(_OnGroups):
    """A function that gives [G] numbers per group, in member order, and None where a reward is unknown."""

    key: ClassVar = "algorithm.advantage"
    offered: ClassVar = ("groups", "rewards")

    def __call__(self, groups: Sequence[Group], rewards: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
        found = self.function({"groups": list(groups), "rewards": [list(of_group) for of_group in rewards]})
        rows = _listed(found)
        if rows is None or len(rows) != len(rewards):
            came = f"it returned {_describe(found)} for {len(rewards)} groups"
            self.function.refuse(came, "a list with a list of numbers for each group")
        return [self._read_group(*one) for one in zip(groups, rewards, rows, strict=True)]

    def _read_group(self, group: Group, rewards: Sequence[float | None], found: object) -> list[float | None]:
        at = f"group {group.group_id}, rewards {[*rewards]}"
        values = _listed(found)
        if values is None or len(values) != len(rewards):
            came = f"it returned {_describe(found)} for {at}"
            self.function.refuse(came, f"a list of {len(rewards)} numbers for this group, one per member")
        values = [value.item() if hasattr(value, "item") else value for value in values]
        for reward, value in zip(rewards, values, strict=True):
            if value is None:
                continue
            if reward is None:
                self.function.refuse(f"it returned {value!r} where a reward is unknown ({at})", "None there")
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
                self.function.refuse(f"it returned {value!r} for a member of {at}", "finite numbers")
        return [None if value is None else float(value) for value in values]


@dataclass(frozen=True)
class OwnFilter(_OnGroups):
    """A function that gives a short name of the reason why a group is left out, or None: it stays."""

    key: ClassVar = "algorithm.filter"
    offered: ClassVar = ("group", "rewards")

    def __call__(self, group: Group) -> str | None:
        reason = self.function({"group": group, "rewards": group_rewards(group)})
        if reason is None or (isinstance(reason, str) and _REASON.fullmatch(reason)):
            return reason
        self.function.refuse(
            f"it returned {reason!r} for group {group.group_id}",
            'None to keep a group, or a short name of the reason in letters, digits and "_", such as "too_long"',
        )


def _listed(values: object) -> list[Any] | None:
    """Lists, tuples, arrays and tensors as a list; None for what is none of them."""
    values = getattr(values, "tolist", lambda: values)()
    return list(values) if isinstance(values, Sequence) and not isinstance(values, str | bytes) else None


def _describe(value: object) -> str:
    listed = _listed(value)
    if listed is not None:
        return f"a {type(value).__name__} of length {len(listed)}"
    return repr(value) if value is None or isinstance(value, bool | int | float | str) else f"a {type(value).__name__}"
