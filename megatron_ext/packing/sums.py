"""Sums that a loss callback returns, and what a step makes of them. No Megatron here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from megatron_ext.packing.micro_batch import MicroBatch
from megatron_ext.packing.routed_experts import Disagreement


@dataclass(frozen=True)
class LossSums:
    """Sums over the predicted tokens of one micro-batch, never means: only the whole step knows the denominator."""

    loss: Tensor
    """Scalar with a graph."""
    num_tokens: Tensor | int
    """Tokens that count in the denominator, a whole number."""
    metrics: dict[str, Tensor]
    """Scalars to be summed along; the same names on every rank."""
    maxima: dict[str, Tensor] = field(default_factory=dict)
    """Scalars of which the step keeps the largest; the same names on every rank."""


@dataclass(frozen=True)
class StepSums:
    """Sums over every micro-batch of every data parallel rank; equal on every rank of every stage."""

    loss: float
    num_tokens: int
    metrics: dict[str, float]
    maxima: dict[str, float] = field(default_factory=dict)
    routing: Disagreement | None = None
    """Where routed experts are replayed."""

    @property
    def mean_loss(self) -> float:
        """Loss per token; 0 when no token counts."""
        return self.loss / self.num_tokens if self.num_tokens else 0.0


LossFn = Callable[[Tensor, Tensor | None, MicroBatch], LossSums]
"""(logprobs_N, entropy_N or None, micro-batch) -> sums."""
