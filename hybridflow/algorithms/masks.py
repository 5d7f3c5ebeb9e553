"""Masks: which tokens of a training row are read and not learnt from."""

from __future__ import annotations

from dataclasses import dataclass

from hybridflow.types import TrainSequence


@dataclass(frozen=True)
class FreshTokens:
    """Leaves out tokens that an older policy decoded (`algorithm.mask_stale_tokens`)."""

    def __call__(self, row: TrainSequence) -> list[int]:
        if not row.staleness:
            return row.loss_mask
        return [mask * int(age == 0) for mask, age in zip(row.loss_mask, row.staleness, strict=True)]
