"""Rows of a micro-batch, for losses of whole sequences: which position is of which row, and sums over rows.

Context parallel ranks hold different positions of the same rows, so a sum over a row is a sum over these ranks too. A
loss that is a function of a whole row, such as GSPO's ratio of sequences, takes its sum or mean over the row, spreads
what it makes of it over the row's positions, and gives each its share: then every row counts once, however the
positions lie, and its gradient reaches all of them.

    ratio_R = rows.mean(logprobs_N - old_logprobs_N).exp()
    loss_N = rows.spread(-ratio_R * advantage_R / rows.count_R)      summed over positions: the sum over rows

Shape legend: N predicted positions on this rank, R rows of the micro-batch, the same on every context parallel rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows with at least one token; those without a predicted position are among them."""

    row_N: Tensor
    """int64, each position's row, counted within the micro-batch."""
    row_ids_R: Tensor
    """int64, the number that the caller gave to each row: in this project its place in the batch."""
    group_ids_R: Tensor
    """int64, the number that the caller gave to its group: rows of one prompt share it, on whatever rank they are."""
    count_R: Tensor
    """int64, predicted positions of each row on all ranks."""
    cp_group: dist.ProcessGroup | None = None
    """Ranks that hold the other positions; None: all are here."""

    @classmethod
    def of(cls, counts: Sequence[int], row_ids: Sequence[int], group_ids: Sequence[int]) -> Rows:
        """From what there is of each row, in the order of its positions."""
        count_R = torch.tensor(counts, dtype=torch.int64)
        return cls(
            torch.arange(len(counts)).repeat_interleave(count_R),
            torch.tensor(row_ids, dtype=torch.int64),
            torch.tensor(group_ids, dtype=torch.int64),
            count_R,
        )

    def sum(self, values_N: Tensor) -> Tensor:
        """[R] sums over whole rows, equal on all context parallel ranks; collective over them, in backward too."""
        here_R = values_N.new_zeros(self.count_R.numel()).index_add(0, self.row_N, values_N)
        if self.cp_group is None:
            return here_R
        return _SumOverRanks.apply(here_R, self.cp_group)  # type: ignore[no-any-return]

    def mean(self, values_N: Tensor) -> Tensor:
        """[R] means over whole rows; 0 for a row without a predicted position. Collective as `sum` is."""
        return self.sum(values_N) / self.count_R.clamp(min=1)

    def spread(self, values_R: Tensor) -> Tensor:
        """[N], the value of each position's row."""
        return values_R[self.row_N]

    def select(self, positions: Tensor) -> Rows:
        """The same rows with some of their positions here; sums miss the others until `over` says who has them."""
        return dataclasses.replace(self, row_N=self.row_N[positions])

    def over(self, cp_group: dist.ProcessGroup) -> Rows:
        """The same with sums over the ranks of `cp_group`, each of which holds other positions."""
        return dataclasses.replace(self, cp_group=cp_group if cp_group.size() > 1 else None)

    def to(self, device: torch.device) -> Rows:
        names = ("row_N", "row_ids_R", "group_ids_R", "count_R")
        return dataclasses.replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


class _SumOverRanks(torch.autograd.Function):
    """A sum over ranks, each of which then computes with it: the gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
