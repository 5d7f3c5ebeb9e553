"""Checks of masks: parts that see one training row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from hybridflow.algorithms.invariances.outcome import BrokenError, Check, Outcome, run_checks
from hybridflow.types import TokenColumns, TrainSequence

MASKS = ([1, 1, 1, 1], [1, 0, 1, 0], [0, 0], [1])
STALENESS = ([2, 1, 0, 0], [], [1, 0], [3])
"""Ages of tokens, in policy versions; empty: all 0."""


def check_mask(mask: Any) -> Iterator[Outcome]:
    """Outcomes of the whole suite, in order."""
    rows = [_make_row(*one) for one in zip(MASKS, STALENESS, strict=True)]
    needed: dict[str, Check] = {
        "ordinary rows": lambda: _check_ordinary(mask, rows),
        "inputs untouched": lambda: _check_untouched(mask, rows),
    }
    promised: dict[str, Check] = {"repeatable": lambda: _check_repeatable(mask, rows)}
    yield from run_checks(needed, promised)


def _make_row(loss_mask: list[int], staleness: list[int]) -> TrainSequence:
    length = len(loss_mask)
    return TrainSequence(
        sequence_id=f"row of {length}",
        group_id="made up",
        prompt_token_ids=[1, 2],
        response=TokenColumns(ids=list(range(length)), rollout_logprobs=[-0.5] * length),
        loss_mask=list(loss_mask),
        advantage=0.5,
        staleness=list(staleness),
    )


def _check_ordinary(mask: Any, rows: list[TrainSequence]) -> str:
    masked = 0
    for row in rows:
        found = mask(row)
        if len(found) != len(row.loss_mask) or not set(found) <= {0, 1}:
            raise BrokenError(f"{found} for {len(row.loss_mask)} tokens: as many 0 and 1 must be")
        if any(new and not old for new, old in zip(found, row.loss_mask, strict=True)):
            raise BrokenError(f"{found} where the mask was {row.loss_mask}: a token that was left out must stay so")
        masked += sum(row.loss_mask) - sum(found)
    return f"{masked} of {sum(sum(row.loss_mask) for row in rows)} tokens left out"


def _check_repeatable(mask: Any, rows: list[TrainSequence]) -> str:
    if [mask(row) for row in rows] != [mask(row) for row in rows]:
        raise BrokenError("called twice, it gives other masks")
    return f"{len(rows)} rows"


def _check_untouched(mask: Any, rows: list[TrainSequence]) -> str:
    before = [msgspec.msgpack.encode(row) for row in rows]
    for row in rows:
        mask(row)
    if [msgspec.msgpack.encode(row) for row in rows] != before:
        raise BrokenError("it changes the row, which others read too")
    return f"{len(rows)} rows"
