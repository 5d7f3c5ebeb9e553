"""The sampling mask: tokens that could be drawn at a position, where sampling leaves some out (top-p).

The trainer leaves out the same. A token drawn from the renormalised probabilities of a part of the vocabulary has the
log-probability

    logit of the token - logsumexp over that part

so the part has to be that of the engine, which changes from position to position. Both are one list of ids here.

Shape legend: N predicted positions, M ids of all of them, C positions of one chunk, V vocabulary rows of this rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ext.packing.ragged import RaggedInput

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
