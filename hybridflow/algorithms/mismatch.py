"""How far apart two policies are on tokens that one of them sampled. Pure.

Legend: N tokens. All logprobs are of the sampled token at the sampling temperature.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hybridflow.algorithms.losses import MAX_LOG_RATIO


class MismatchSums(NamedTuple):
    """Sums over tokens, float32 scalars."""

    gap: Tensor
    """|trainer - engine|."""
    kl: Tensor
    """Estimates of KL(engine || trainer), each at least 0."""


class RatioSums(NamedTuple):
    """Over tokens, float32 scalars."""

    ratio: Tensor
    """Sum of new / old probability."""
    ratio_max: Tensor
    """The largest; 0 where there is no token."""
    kl: Tensor
    """Sum of estimates of KL(old || new), each at least 0."""


def ratio_sums(new_N: Tensor, old_N: Tensor) -> RatioSums:
    """Sums of the ratios of the policy in update to the one before it, clamped as in `losses.policy_loss`."""
    log_ratio_N = (new_N - old_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_N = log_ratio_N.exp()
    largest = ratio_N.max() if ratio_N.numel() else torch.zeros((), dtype=new_N.dtype, device=new_N.device)
    return RatioSums(ratio_N.sum(), largest, (log_ratio_N.expm1() - log_ratio_N).sum())


def mismatch_sums(trainer_N: Tensor, engine_N: Tensor) -> MismatchSums:
    """Sums for the means of a step.

    The KL is Schulman's k3 estimator, r - 1 - log r with r = trainer / engine probability of a token that the engine
    drew: unbiased, and never negative (joschu.net/blog/kl-approx.html).
    """
    log_ratio_N = trainer_N - engine_N
    return MismatchSums(log_ratio_N.abs().sum(), (log_ratio_N.expm1() - log_ratio_N).sum())


def largest_gap(trainer_N: Tensor, engine_N: Tensor) -> Tensor:
    """Largest |trainer - engine|, a float32 scalar; 0 where there is no token."""
    if not trainer_N.numel():
        return torch.zeros((), device=trainer_N.device)
    return (trainer_N - engine_N).abs().max()
