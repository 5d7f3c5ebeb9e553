"""Task-balanced batches: every batch has of each source of rows the share that was configured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from hybridflow.curriculum.source import ShuffledEpochs
from hybridflow.data.streams import derive_stream
from hybridflow.types import Group, Prompt


class TaskBalance:
    """Walks over each task (`data_source`) in epochs of its own, and gives each batch its share of every task.

    Source: QwenLong-L1.5 (arXiv 2512.12967), whose sampler puts equal counts of its five tasks in each batch. Of n
    prompts a task gets n x share, rounded down or up, so every batch is within one row of it; the odd rows go to the
    tasks that are farthest behind their shares. Small tasks begin their next epoch sooner than large ones.
    """

    name = "task_balance"

    def __init__(
        self,
        prompts: Sequence[Prompt],
        stream: tuple[str | int, ...],
        shares: Mapping[str, float] | None = None,
    ) -> None:
        """`shares`: by task, 0 or more, in any unit; None: equal. Raises ValueError where they do not fit the rows."""
        by_task: dict[str, list[Prompt]] = {}
        for prompt in prompts:
            by_task.setdefault(prompt.data_source, []).append(prompt)
        self._shares = _normalise(by_task, shares)
        self._stream = stream
        self._walks = {task: ShuffledEpochs(by_task[task], (*stream, task)) for task in self._shares}
        self._taken = dict.fromkeys(self._shares, 0)

    def next(self, num_prompts: int) -> list[Prompt]:
        """A batch, its tasks mixed in a seeded order."""
        counts = self._count(num_prompts)
        batch = [prompt for task, count in counts.items() for prompt in self._walks[task].next(count)]
        derive_stream(*self._stream, "hybridflow.mix", sum(self._taken.values()), num_prompts).shuffle(batch)
        self._taken = {task: taken + counts[task] for task, taken in self._taken.items()}
        return batch

    def observe(self, groups: Sequence[Group]) -> None:
        """Whatever came of them, the order stays."""

    def state_dict(self) -> dict[str, Any]:
        return {"num_taken": dict(self._taken)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        taken = state.get("num_taken")
        if len(state) != 1 or not isinstance(taken, dict) or taken.keys() != self._taken.keys():
            raise ValueError(f"expected {{'num_taken': numbers of {', '.join(self._taken)}}}, got {str(state)[:80]}")
        for task, walk in self._walks.items():
            walk.load_state_dict({"num_taken": taken[task]})
        self._taken = dict(taken)

    def _count(self, num_prompts: int) -> dict[str, int]:
        """Prompts of each task in the next batch."""
        owed = {task: num_prompts * share for task, share in self._shares.items()}
        counts = {task: math.floor(owed[task]) for task in owed}
        total = sum(self._taken.values()) + num_prompts
        behind = {task: total * share - self._taken[task] - counts[task] for task, share in self._shares.items()}
        odd = sorted((task for task in owed if owed[task] > counts[task]), key=lambda task: (-behind[task], task))
        for task in odd[: num_prompts - sum(counts.values())]:
            counts[task] += 1
        return counts


def _normalise(by_task: Mapping[str, Sequence[Prompt]], shares: Mapping[str, float] | None) -> dict[str, Fraction]:
    """Exact shares that add up to 1, of the tasks that have any, by name."""
    given = dict.fromkeys(by_task, 1.0) if shares is None else dict(shares)
    if bad := {task: share for task, share in given.items() if not (share >= 0 and math.isfinite(share))}:
        raise ValueError(f"shares of tasks {bad} are none. Remedy: give numbers of 0 or more")
    if lacking := sorted(task for task, share in given.items() if share and task not in by_task):
        raise ValueError(
            f"tasks {', '.join(lacking)} have a share and no row; rows are of {', '.join(sorted(by_task))}. Remedy: "
            "take them out of the shares, or give a file that has such rows"
        )
    if without := sorted(by_task.keys() - given.keys()):
        raise ValueError(
            f"rows of {', '.join(without)} have no share: none would ever be trained on. Remedy: give each data_source "
            "a share, 0 to leave it out"
        )
    total = sum(Fraction(str(share)) for share in given.values())
    if not total:
        raise ValueError("no task has a share. Remedy: give at least one a number above 0")
    return {task: Fraction(str(given[task])) / total for task in sorted(given) if given[task]}
