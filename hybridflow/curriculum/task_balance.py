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

    A prompt in place of another one is of the same task, so that what is left of a batch has its shares too. It is not
    in the balance: a task that needs many tries is not owed less for that.
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
        self._replaced = dict.fromkeys(self._shares, 0)

    def next(self, num_prompts: int) -> list[Prompt]:
        """A batch, its tasks mixed in a seeded order."""
        counts = self._count(num_prompts)
        batch = [prompt for task, count in counts.items() for prompt in self._walks[task].next(count)]
        derive_stream(*self._stream, "hybridflow.mix", sum(self._taken.values()), num_prompts).shuffle(batch)
        self._taken = {task: taken + counts[task] for task, taken in self._taken.items()}
        return batch

    def replace(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The next prompts of the tasks of `prompts`; of a task that is not here, what is next in the balance."""
        return [self._next_like(prompt) for prompt in prompts]

    def observe(self, groups: Sequence[Group]) -> None:
        """Whatever came of them, the order stays."""

    def state_dict(self) -> dict[str, Any]:
        return {"num_taken": dict(self._taken), "num_replaced": dict(self._replaced)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        taken, replaced = (self._read(state, key) for key in ("num_taken", "num_replaced"))
        for task, walk in self._walks.items():
            walk.load_state_dict({"num_taken": taken[task] + replaced[task]})
        self._taken, self._replaced = taken, replaced

    def _read(self, state: Mapping[str, Any], key: str) -> dict[str, int]:
        found = state.get(key)
        if not isinstance(found, dict) or found.keys() != self._taken.keys():
            raise ValueError(f"expected {key!r}: numbers of {', '.join(self._taken)}, got {str(found)[:80]}")
        if bad := {task: number for task, number in found.items() if type(number) is not int or number < 0}:
            raise ValueError(f"expected {key!r}: numbers of 0 or more, got {str(bad)[:80]}")
        return dict(found)

    def _next_like(self, prompt: Prompt) -> Prompt:
        task = prompt.data_source
        if task not in self._walks:
            return self.next(1)[0]
        self._replaced[task] += 1
        return self._walks[task].next(1)[0]

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
