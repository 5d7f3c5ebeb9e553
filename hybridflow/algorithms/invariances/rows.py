"""Rows of made-up micro-batches; of context parallel ranks too, which are threads here.

Shape legend: N positions on this rank, R rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")


class UnequalSumsError(Exception):
    """A rank asked for a sum over rows that another one did not ask for."""


class Meeting:
    """Adds what all ranks bring, as a sum over context parallel ranks does; autograd goes through it."""

    def __init__(self, num_ranks: int) -> None:
        self._changed = threading.Condition()
        self._brought: list[list[Tensor]] = [[] for _ in range(num_ranks)]
        self._ended: set[int] = set()
        self._rank = threading.local()

    def add(self, values: Tensor) -> Tensor:
        """The sum over ranks. Raises UnequalSumsError where one of them ends without it."""
        with self._changed:
            mine = self._brought[self._rank.number]
            place = len(mine)
            mine.append(values)
            self._changed.notify_all()
            self._changed.wait_for(lambda: all(self._has_come(rank, place) for rank in range(len(self._brought))))
            if any(len(brought) <= place for brought in self._brought):
                raise UnequalSumsError(
                    "one context parallel rank asks for a sum over rows that another one does not ask for: a run hangs"
                )
            return torch.stack([brought[place] for brought in self._brought]).sum(0)

    def run(self, rank: int, program: Callable[[], _T]) -> _T:
        """`program` as that rank, in this thread."""
        self._rank.number = rank
        try:
            return program()
        finally:
            with self._changed:
                self._ended.add(rank)
                self._changed.notify_all()

    def _has_come(self, rank: int, place: int) -> bool:
        return len(self._brought[rank]) > place or rank in self._ended


@dataclass(frozen=True)
class MadeRows:
    """As `megatron_ext.packing.rows.Rows`, without process groups."""

    row_N: Tensor
    row_ids_R: Tensor
    group_ids_R: Tensor
    count_R: Tensor
    meeting: Meeting | None = None

    def sum(self, values_N: Tensor) -> Tensor:
        here_R = values_N.new_zeros(self.count_R.numel()).index_add(0, self.row_N, values_N)
        return here_R if self.meeting is None else self.meeting.add(here_R)

    def mean(self, values_N: Tensor) -> Tensor:
        return self.sum(values_N) / self.count_R.clamp(min=1)

    def spread(self, values_R: Tensor) -> Tensor:
        return values_R[self.row_N]


def run_as_ranks(programs: Sequence[Callable[[Meeting], _T]]) -> list[_T]:
    """Results of the programs, each in a thread of its own, as ranks that meet. The first error of any is raised."""
    meeting = Meeting(len(programs))
    results: dict[int, _T] = {}
    errors: list[Exception] = []

    def run(rank: int) -> None:
        try:
            results[rank] = meeting.run(rank, lambda: programs[rank](meeting))
        except Exception as error:  # told to the caller, below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(len(programs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, UnequalSumsError)), errors[0])
    return [results[rank] for rank in range(len(programs))]
