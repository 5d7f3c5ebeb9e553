"""Supervised learning as a term of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hybridflow.algorithms.objective import TermValue, TokenBatch
from hybridflow.algorithms.reductions import Reduction


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """-log p of each token of a demonstration; with `sequence_mean` QwenLong-L1's (arXiv 2505.17667, eq. 11)."""

    columns: ClassVar = ()
    metrics: ClassVar = {"policy/nll": Reduction("mean")}

    def __call__(self, tokens: TokenBatch) -> TermValue:
        return TermValue(-tokens.logprobs_N, {"policy/nll": -tokens.logprobs_N})
