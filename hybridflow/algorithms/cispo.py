"""CISPO: REINFORCE with clipped importance weights, so that no token loses its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hybridflow.algorithms.losses import CLIP_FRACTIONS, CLIP_HIGH, CLIP_LOW, compute_ratio
from hybridflow.algorithms.objective import ADVANTAGES, OLD_LOGPROBS, TermValue, TokenBatch


@dataclass(frozen=True)
class ClippedWeight:
    """-sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi, with r = pi / pi_old per token.

    Source: CISPO (MiniMax-M1, arXiv 2506.13585 Eq. 4 and 5), whose aggregation is `token_mean`. The paper sets no lower
    bound, which is clip_low = 1, and does not publish the upper one; slime takes clip_high = 4, ScaleRL (2510.13786, as
    in TRL) the same bound of 5 on r. Deviation: log r is clamped to +-MAX_LOG_RATIO, as the clip does anyway.

    The clip fractions are shares of tokens whose weight was clipped, whatever the sign of their advantage; these keep
    their gradient.
    """

    clip_low: float
    clip_high: float
    columns: ClassVar = (ADVANTAGES, OLD_LOGPROBS)
    metrics: ClassVar = CLIP_FRACTIONS

    def __call__(self, tokens: TokenBatch) -> TermValue:
        ratio_N, advantages_N = compute_ratio(
            tokens.logprobs_N.detach(), tokens.columns[OLD_LOGPROBS], tokens.columns[ADVANTAGES]
        )
        lowest, highest = 1 - self.clip_low, 1 + self.clip_high
        loss_N = -ratio_N.clamp(lowest, highest) * advantages_N * tokens.logprobs_N
        return TermValue(loss_N, {CLIP_LOW: ratio_N < lowest, CLIP_HIGH: ratio_N > highest})
