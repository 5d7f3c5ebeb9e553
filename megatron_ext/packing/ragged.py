"""Several integers for each predicted position of a micro-batch, of a number that differs from one to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RaggedInput:
    """M integers of N positions.

    Example: lengths 2, 0, 1 and values 7, 9, 4 are 7 and 9 at the first position, none at the second, 4 at the third.
    """

    lengths_N: Tensor
    """int64."""
    values_M: Tensor
    """int64, position after position."""

    @classmethod
    def of(cls, lengths: Sequence[int], values: Sequence[int]) -> RaggedInput:
        return cls(torch.tensor(lengths, dtype=torch.int64), torch.tensor(values, dtype=torch.int64))

    def select(self, rows_R: Tensor) -> RaggedInput:
        """The lists of some of the positions, in the order of `rows_R` (int64, ascending)."""
        is_kept_N = torch.zeros_like(self.lengths_N, dtype=torch.bool)
        is_kept_N[rows_R] = True
        return RaggedInput(self.lengths_N[rows_R], self.values_M[is_kept_N.repeat_interleave(self.lengths_N)])

    def to(self, device: torch.device) -> RaggedInput:
        return RaggedInput(
            self.lengths_N.to(device, non_blocking=True),
            self.values_M.to(device, non_blocking=True),
        )
