"""How far the trainer's and the engine's logprobs of the same tokens are apart.

Both are at the sampling temperature and of the same weights, so that the gap is numerics alone (kernels, precision) or
a weight that did not arrive. Shape suffix: N = response tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hybridflow.errors import ProtocolError


@dataclass(frozen=True)
class LogprobGap:
    """Sums that add up over micro-batches and ranks: `a + b` is the gap over the tokens of both. In nats."""

    sum_abs: float = 0.0
    max_abs: float = 0.0
    num_tokens: int = 0

    @property
    def mean_abs(self) -> float:
        """Mean of |old - rollout| per token; 0 where there is no token."""
        return self.sum_abs / self.num_tokens if self.num_tokens else 0.0

    def __add__(self, other: LogprobGap) -> LogprobGap:
        is_nan = math.isnan(self.max_abs) or math.isnan(other.max_abs)  # max() would keep or lose it by order
        return LogprobGap(
            sum_abs=self.sum_abs + other.sum_abs,
            max_abs=math.nan if is_nan else max(self.max_abs, other.max_abs),
            num_tokens=self.num_tokens + other.num_tokens,
        )


def compute_logprob_gap(old_logprobs_N: torch.Tensor, rollout_logprobs_N: torch.Tensor) -> LogprobGap:
    """The gap over [N] response tokens, summed in float64. Not-a-number in, not-a-number out.

    Raises:
        ProtocolError: the shapes differ.
    """
    if old_logprobs_N.shape != rollout_logprobs_N.shape:
        shapes = f"{tuple(old_logprobs_N.shape)} and {tuple(rollout_logprobs_N.shape)}"
        raise ProtocolError(f"old_logprobs and rollout_logprobs must have one shape, got {shapes}")
    if old_logprobs_N.numel() == 0:
        return LogprobGap()
    gap_N = (old_logprobs_N.detach().double() - rollout_logprobs_N.detach().double()).abs()
    return LogprobGap(sum_abs=float(gap_N.sum()), max_abs=float(gap_N.max()), num_tokens=gap_N.numel())
