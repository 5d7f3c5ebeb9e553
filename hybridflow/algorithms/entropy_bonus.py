"""Entropy bonus: a term of the loss that pays for randomness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from hybridflow.algorithms.objective import ENTROPY, TermValue, TokenBatch
from hybridflow.algorithms.reductions import Reduction


@dataclass(frozen=True)
class EntropyBonus:
    """-entropy_coefficient * H, with H the entropy of the distribution that the token was drawn from.

    That is the softmax at the sampling temperature; with top-p it is renormalised over the tokens that could be drawn,
    which is where the trainer's log-probabilities are, too. The gradient is exact, through every logit, not that of
    the drawn token's log-probability. Aggregated as the policy loss is, as in verl and in the released QwenLong-L1
    code (coefficient 0.001); there H is of the whole vocabulary, because top-p is not repeated in the trainer.
    """

    entropy_coefficient: float
    columns: ClassVar = (ENTROPY,)
    metrics: ClassVar[Mapping[str, Reduction]] = {}

    def __call__(self, tokens: TokenBatch) -> TermValue:
        return TermValue(-self.entropy_coefficient * tokens.columns[ENTROPY])
