"""GSPO: the clipped surrogate of whole sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hybridflow.algorithms.losses import (
    CLIP_FRACTIONS,
    CLIP_HIGH,
    CLIP_LOW,
    clip_surrogate,
    compute_ratio,
)
from hybridflow.algorithms.objective import ADVANTAGES, OLD_LOGPROBS, TermValue, TokenBatch
from hybridflow.errors import ProtocolError


@dataclass(frozen=True)
class SequenceRatio:
    """-min(s A, clip(s, 1 - clip_low, 1 + clip_high) A) with s = (pi(y) / pi_old(y))^(1 / |y|) of the sequence.

    Source: GSPO (arXiv 2507.18071 Eq. 5 and 7), in the form with a stop-gradient of its Eq. 13 and 14 (GSPO-token):

        s_t = sg(s) pi_t / sg(pi_t)        s = exp(mean over the sequence of log pi_t - log pi_old_t)

    Value and gradient are those of the sequence form where all tokens of a sequence have one advantage, as here. Each
    token then has a loss of its own, which a correction of single tokens can weigh, and backward needs no sum over
    context parallel ranks. |y| counts the tokens that the loss mask leaves in, and masked ones are not in the mean.

    Each token of a sequence has the sequence's loss, so `sequence_mean` gives the paper's mean over sequences, and no
    other aggregation does: a sum over tokens would weigh a sequence by its length again. The paper's clips are 3e-4 and
    4e-4. Deviation: log s is clamped to +-MAX_LOG_RATIO, outside of which there is no gradient.

    The clip fractions are the shares of tokens whose sequence was clipped.
    """

    clip_low: float
    clip_high: float
    columns: ClassVar = (ADVANTAGES, OLD_LOGPROBS)
    metrics: ClassVar = CLIP_FRACTIONS
    of_sequences: ClassVar = True

    def __call__(self, tokens: TokenBatch) -> TermValue:
        if tokens.rows is None:
            raise ProtocolError("a loss of whole sequences needs the rows of its micro-batch, and there are none")
        logprobs_N, old_N = tokens.logprobs_N, tokens.columns[OLD_LOGPROBS]
        sequence_N = tokens.rows.spread(tokens.rows.mean((logprobs_N - old_N).detach()))
        ratio_N, advantages_N = compute_ratio(
            sequence_N + (logprobs_N - logprobs_N.detach()),
            sequence_N.new_zeros(()).expand_as(old_N),
            tokens.columns[ADVANTAGES],
        )
        loss_N, low_N, high_N = clip_surrogate(ratio_N, advantages_N, clip_low=self.clip_low, clip_high=self.clip_high)
        return TermValue(loss_N, {CLIP_LOW: low_N, CLIP_HIGH: high_N})
