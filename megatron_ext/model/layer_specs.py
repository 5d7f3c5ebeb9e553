"""Layer specs: the modules that a transformer layer is made of, with the feed-forward of a dense layer.

The dense feed-forward is down(silu(gate) * up). Megatron's own computes the same, but without its fused kernels at more
than twice the time of this part: it adds a zero offset to `up` on the way, and puts the gradients of gate and up
together with copies.

Shape legend: T tokens, H hidden size, F feed-forward width of this rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_ext import platform
from megatron_ext.attention.packed import PackedAttention
from megatron_ext.model.norms import TokenRMSNorm
from megatron_ext.model.routing_replay import ExpertLayer, expert_layers

platform.install()

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add  # noqa: E402
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear  # noqa: E402
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules  # noqa: E402
from megatron.core.transformer.enums import AttnMaskType  # noqa: E402
from megatron.core.transformer.identity_op import IdentityOp  # noqa: E402
from megatron.core.transformer.mlp import MLP, MLPSubmodules  # noqa: E402
from megatron.core.transformer.spec_utils import ModuleSpec  # noqa: E402
from megatron.core.transformer.transformer_block import (  # noqa: E402
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402
from megatron.core.transformer.transformer_layer import (  # noqa: E402
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)


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


@dataclass(frozen=True)
class LayerKernels:
    """The modules of a layer that a library computes."""

    core_attention: type[PackedAttention]
    norm: type[TokenRMSNorm]


def build_block_spec(
    config: TransformerConfig, kernels: LayerKernels, pp_rank: int, vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """Layers of a (virtual) pipeline stage: pre-norm, grouped-query attention over packed segments, MLP or experts."""
    first = get_transformer_layer_offset(config, vp_stage=vp_stage, pp_rank=pp_rank)
    count = get_num_layers_to_build(config, vp_stage=vp_stage, pp_rank=pp_rank)
    experts = set(expert_layers(config))
    layers = [_layer_spec(config, kernels, layer in experts) for layer in range(first, first + count)]
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=kernels.norm)


def _layer_spec(config: TransformerConfig, kernels: LayerKernels, has_experts: bool) -> ModuleSpec:
    head_norm = kernels.norm if config.qk_layernorm else IdentityOp
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=kernels.core_attention,
            linear_proj=RowParallelLinear,
            q_layernorm=head_norm,
            k_layernorm=head_norm,
        ),
    )
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=kernels.norm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=kernels.norm,
            mlp=ExpertLayer if has_experts else GatedMLP,
            mlp_bda=get_bias_dropout_add,
        ),
    )
