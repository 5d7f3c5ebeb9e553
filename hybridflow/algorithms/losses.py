"""Terms of the loss, per token: of demonstrations, and the clipped surrogate with and without a dual clip.

Shape suffix: N = response tokens of one micro-batch, of all its sequences, in any order.

Nothing here averages: a term gives a value per token, and an aggregation (`aggregations.py`) says what they add up to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hybridflow.algorithms.objective import ADVANTAGES, OLD_LOGPROBS, TermValue, TokenBatch
from hybridflow.algorithms.reductions import Reduction
from hybridflow.errors import ProtocolError

CLIP_LOW, CLIP_HIGH = "policy/clip_fraction_low", "policy/clip_fraction_high"
CLIP_DUAL = "policy/clip_fraction_dual"
CLIP_FRACTIONS = {CLIP_LOW: Reduction("mean"), CLIP_HIGH: Reduction("mean")}


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
    ratio_N, advantages_N = compute_ratio(logprobs_N, old_logprobs_N, advantages_N)
    return clip_surrogate(ratio_N, advantages_N, clip_low=clip_low, clip_high=clip_high)


def compute_ratio(
    logprobs_N: torch.Tensor, old_logprobs_N: torch.Tensor, advantages_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(pi / pi_old [N] with the graph of the first, advantages [N] without a graph); see `policy_loss`."""
    if not logprobs_N.shape == old_logprobs_N.shape == advantages_N.shape:
        shapes = [tuple(tensor.shape) for tensor in (logprobs_N, old_logprobs_N, advantages_N)]
        raise ProtocolError(f"logprobs, old_logprobs and advantages must have one shape, got {shapes}")
    log_ratio_N = logprobs_N - old_logprobs_N.detach()
    return log_ratio_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp(), advantages_N.detach()


def clip_surrogate(
    ratio_N: torch.Tensor, advantages_N: torch.Tensor, *, clip_low: float, clip_high: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`policy_loss` of ratios, of tokens or of anything else."""
    clipped_ratio_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    loss_N = torch.maximum(-ratio_N * advantages_N, -clipped_ratio_N * advantages_N)
    with torch.no_grad():
        clipped_low_N = (ratio_N < 1 - clip_low) & (advantages_N < 0)
        clipped_high_N = (ratio_N > 1 + clip_high) & (advantages_N > 0)
    return loss_N, clipped_low_N, clipped_high_N


@dataclass(frozen=True)
class ClippedSurrogate:
    """`policy_loss` as a term of the objective; its metrics are the shares of tokens without gradient, by clip.

    With `token_mean` it is DAPO's loss, with `sequence_mean` GRPO's (2505.17667 Eq. 4 and 6).
    """

    clip_low: float
    clip_high: float
    columns: ClassVar = (ADVANTAGES, OLD_LOGPROBS)
    metrics: ClassVar = CLIP_FRACTIONS

    def __call__(self, tokens: TokenBatch) -> TermValue:
        loss_N, low_N, high_N = policy_loss(
            tokens.logprobs_N,
            tokens.columns[OLD_LOGPROBS],
            tokens.columns[ADVANTAGES],
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )
        return TermValue(loss_N, {CLIP_LOW: low_N, CLIP_HIGH: high_N})


@dataclass(frozen=True)
class DualClip:
    """The clipped surrogate with a bound where the advantage is negative: -max(min(r A, clip(r) A), c A) for A < 0.

    Without it the loss of a token grows with r for ever. Source: "Mastering Complex Control in MOBA Games with Deep
    Reinforcement Learning" (arXiv 1912.09729, dual-clip PPO, c = 3), as verl's `compute_policy_loss` has it.
    `clip_dual` is c, above 1. `policy/clip_fraction_dual` is the share of tokens that only this clip takes the
    gradient from.
    """

    clip_low: float
    clip_high: float
    clip_dual: float
    columns: ClassVar = (ADVANTAGES, OLD_LOGPROBS)
    metrics: ClassVar = {**CLIP_FRACTIONS, CLIP_DUAL: Reduction("mean")}

    def __call__(self, tokens: TokenBatch) -> TermValue:
        ratio_N, advantages_N = compute_ratio(
            tokens.logprobs_N, tokens.columns[OLD_LOGPROBS], tokens.columns[ADVANTAGES]
        )
        loss_N, low_N, high_N = clip_surrogate(ratio_N, advantages_N, clip_low=self.clip_low, clip_high=self.clip_high)
        dual_N = (ratio_N.detach() > self.clip_dual) & (advantages_N < 0)
        loss_N = torch.where(dual_N, -self.clip_dual * advantages_N, loss_N)
        return TermValue(loss_N, {CLIP_LOW: low_N, CLIP_HIGH: high_N, CLIP_DUAL: dual_N})
