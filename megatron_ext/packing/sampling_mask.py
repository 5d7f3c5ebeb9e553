"""The sampling mask: tokens that could be drawn at a position, where sampling leaves some out (top-p).

The trainer leaves out the same. A token drawn from the renormalised probabilities of a part of the vocabulary has the
log-probability

    logit of the token - logsumexp over that part

so the part has to be that of the engine, which changes from position to position. Both are one list of ids here.

Shape legend: N predicted positions, M ids of all of them, C positions of one chunk, V vocabulary rows of this rank.

Its form is ragged: several integers for each predicted position of a micro-batch, as many as there are.
"""

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


SAMPLING_MASK = "sampling_mask"
"""Its name among the ragged inputs of a micro-batch. A position without ids may draw any token."""


class LocalSamplingMask:
    """The part of it that lies in the vocabulary rows `first_row` .. `first_row + num_rows` of this rank."""

    def __init__(self, mask: RaggedInput, first_row: int, num_rows: int) -> None:
        lengths_N = mask.lengths_N
        positions_M = torch.arange(lengths_N.numel(), device=lengths_N.device).repeat_interleave(lengths_N)
        columns_M = mask.values_M - first_row
        is_here_M = (columns_M >= 0) & (columns_M < num_rows)
        self._positions = positions_M[is_here_M]  # ascending
        self._columns = columns_M[is_here_M]
        self._is_restricted_N = lengths_N > 0

    def restrict(self, logits_CV: Tensor, chunk: slice) -> None:
        """Makes the logits of what could not be drawn -inf, in place."""
        bounds = torch.tensor([chunk.start, chunk.stop], device=self._positions.device)
        first, last = torch.searchsorted(self._positions, bounds).tolist()
        places = self._positions[first:last] - chunk.start, self._columns[first:last]
        kept = logits_CV[places]
        logits_CV.masked_fill_(self._is_restricted_N[chunk, None], -torch.inf)
        logits_CV[places] = kept
