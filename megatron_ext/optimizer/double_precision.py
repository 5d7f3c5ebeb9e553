"""A policy in float64: for tests, and for reference log-probabilities.

Megatron-Core knows float32 and less. Where it says `.float()`, or divides by a count, it means "at least float32"; a
float64 policy computes inside `arithmetic_of(torch.float64)`, where that is so. Tables of rotary angles stay in
float32: they are the model's, see `rotary`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from megatron_ext import platform

platform.install()

from megatron.core.optimizer import MegatronOptimizer  # noqa: E402


@contextmanager
def arithmetic_of(dtype: torch.dtype) -> Iterator[None]:
    """Inside, with float64, new tensors are float64 and `Tensor.float()` leaves float64 alone. Else nothing changes."""
    if dtype != torch.float64:
        yield
        return
    default, to_float = torch.get_default_dtype(), torch.Tensor.float

    def at_least_float(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self if self.dtype == torch.float64 else to_float(self, *args, **kwargs)

    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = at_least_float  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.float = to_float  # type: ignore[method-assign]
        torch.set_default_dtype(default)


def double_grad_norm(members: list[MegatronOptimizer]) -> float:
    """Global L2 norm of the gradients in float64. Upstream's own is float32 whatever the gradients are. Collective."""
    total = 0.0
    for member in members:
        grads = member.get_main_grads_for_grad_norm()
        squares = sum((grad.square().sum() for grad in grads), torch.zeros((), dtype=torch.float64))
        dist.all_reduce(squares, group=member.get_grad_stats_parallel_group())
        total += squares.item()
    return total**0.5
