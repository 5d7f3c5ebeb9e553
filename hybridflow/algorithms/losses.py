"""Terms of the loss, per token.

Shape suffix: N = response tokens of one micro-batch, of all its sequences, in any order.

Nothing here averages: a term gives a value per token, and an aggregation (`aggregations.py`) says what they add up to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hybridflow.algorithms.objective import OLD_LOGPROBS, TermValue, TokenBatch
from hybridflow.algorithms.reductions import Reduction
from hybridflow.errors import ProtocolError


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """-log p of each token of a demonstration; with `sequence_mean` QwenLong-L1's (arXiv 2505.17667, eq. 11)."""

    columns: ClassVar = ()
    metrics: ClassVar = {"policy/nll": Reduction("mean")}

    def __call__(self, tokens: TokenBatch) -> TermValue:
        return TermValue(-tokens.logprobs_N, {"policy/nll": -tokens.logprobs_N})


MAX_LOG_RATIO = 20.0
"""Bound on log(pi / pi_old) before exp. Without it, one token whose probability rose from near 0 has an infinite ratio,
and inf * 0 makes the whole batch not-a-number. It matters only where the advantage is negative and the ratio above
exp(20) = 4.9e8, which the objective leaves unclipped."""


def policy_loss(
    logprobs_N: torch.Tensor,
    old_logprobs_N: torch.Tensor,
    advantages_N: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clipped surrogate: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), with r = pi / pi_old per token.

    Source: DAPO (arXiv 2503.14476), token-level clipped objective with clip_low 0.2 and clip_high 0.28 (recipe section
    5; QwenLong-L1's script has 0.2 and 0.2). The SUM of loss_N is divided by the token count of the optimizer step
    elsewhere, see the module docstring: a mean over tokens. GRPO as the papers write it averages within each sequence
    first (2505.17667 Eq. 4), so that a token of a long completion weighs less: equal clips alone do not give it.
    Deviation: the log ratio is clamped to +-MAX_LOG_RATIO; outside, the gradient is 0.

    Args:
        logprobs_N: [N] of the policy in update, at the sampling temperature; the only input that gets a gradient.
        old_logprobs_N: [N] of the policy before the update (the trainer's, not the engine's).
        advantages_N: [N] advantage of the token's sequence.
        clip_low: In (0, 1]; how far the ratio may fall where the advantage is negative.
        clip_high: Above 0; how far the ratio may rise where the advantage is positive.

    Returns:
        loss_N [N] in the dtype of logprobs_N, and clipped_low_N, clipped_high_N [N] bool: where the lower or upper clip
        was active, so that the token gave no gradient.

    Raises:
        ProtocolError: the shapes differ; broadcasting would turn a mistake into a wrong loss.
    """
    if not logprobs_N.shape == old_logprobs_N.shape == advantages_N.shape:
        shapes = [tuple(tensor.shape) for tensor in (logprobs_N, old_logprobs_N, advantages_N)]
        raise ProtocolError(f"logprobs, old_logprobs and advantages must have one shape, got {shapes}")
    old_logprobs_N, advantages_N = old_logprobs_N.detach(), advantages_N.detach()
    ratio_N = (logprobs_N - old_logprobs_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    clipped_ratio_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    loss_N = torch.maximum(-ratio_N * advantages_N, -clipped_ratio_N * advantages_N)
    with torch.no_grad():
        clipped_low_N = (ratio_N < 1 - clip_low) & (advantages_N < 0)
        clipped_high_N = (ratio_N > 1 + clip_high) & (advantages_N > 0)
    return loss_N, clipped_low_N, clipped_high_N


@dataclass(frozen=True)
class ClippedSurrogate:
    """`policy_loss` as a term of the objective; its metrics are the shares of tokens without gradient, by clip."""

    clip_low: float
    clip_high: float
    columns: ClassVar = ("advantages", OLD_LOGPROBS)
    metrics: ClassVar = {
        "policy/clip_fraction_low": Reduction("mean"),
        "policy/clip_fraction_high": Reduction("mean"),
    }

    def __call__(self, tokens: TokenBatch) -> TermValue:
        loss_N, low_N, high_N = policy_loss(
            tokens.logprobs_N,
            tokens.columns[OLD_LOGPROBS],
            tokens.columns["advantages"],
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )
        return TermValue(loss_N, {"policy/clip_fraction_low": low_N, "policy/clip_fraction_high": high_N})
