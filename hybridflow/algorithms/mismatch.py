"""How far the trainer's probabilities are from those of the engine that sampled. Pure.

Legend: N tokens. Both logprobs are of the sampled token at the sampling temperature, under the same weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MismatchSums(NamedTuple):
    """Sums over tokens, float32 scalars."""

    gap: Tensor
    """|trainer - engine|."""
    kl: Tensor
    """Estimates of KL(engine || trainer), each at least 0."""


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
