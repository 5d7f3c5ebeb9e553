"""The feed-forward of a dense layer: down(silu(gate) * up).

Megatron's own computes the same, but without its fused kernels at more than twice the time of this part: it adds a zero
offset to `up` on the way, and puts the gradients of gate and up together with copies.

Shape legend: T tokens, H hidden size, F feed-forward width of this rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_ext import platform

platform.install()

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear  # noqa: E402
from megatron.core.transformer.mlp import MLP, MLPSubmodules  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402


class GatedMLP(MLP):
    """Megatron's MLP, for SiLU gates without biases; weights, cuts and checkpoints are upstream's."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config, MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear))

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, per_token_scale: None = None, **unused: Any
    ) -> tuple[Tensor, Tensor | None]:
        """[T, 1, H] -> [T, 1, H] and no bias."""
        gate_up, _ = self.linear_fc1(hidden_states)
        return self.linear_fc2(silu_gate(gate_up))


def silu_gate(gate_up: Tensor) -> Tensor:
    """silu(first half) * second half of the last dimension: [..., 2 * F] -> [..., F]."""
    return _SiluGate.apply(gate_up)  # type: ignore[return-value]


class _SiluGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        activated = F.silu(gate)
        ctx.save_for_backward(gate_up, activated)
        return activated * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad: Tensor = grad_outputs[0]
        gate_up, activated = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad, activated, out=grad_up)
        torch.mul(grad, up, out=grad_gate)
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grad_gate_up
