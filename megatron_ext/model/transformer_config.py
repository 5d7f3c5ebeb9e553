"""Megatron's config of a model for a layout and a precision."""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING, Any

import torch

from megatron_ext.hf.config import HFConfig
from megatron_ext.hf.refusals import UnsupportedModelError
from megatron_ext.parallel.layout import Layout, LayoutError
from megatron_ext.platform.device import Device

if TYPE_CHECKING:
    from megatron.core.transformer import TransformerConfig


def transformer_config(
    hf_config: HFConfig, layout: Layout, dtype: torch.dtype, device: Device, *, fuse_weight_gradients: bool = False
) -> TransformerConfig:
    """Megatron's config for this model, layout and parameter dtype (float32, bfloat16, or float64).

    `fuse_weight_gradients` adds each product to the gradient buffer as it is made; for buffers in float64 there is no
    such kernel.

    Raises UnsupportedModelError for another dtype, LayoutError for grouped experts where they cannot run.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise UnsupportedModelError(f"dtype = {dtype}: only float32, bfloat16 and float64 are supported")

    from megatron_ext import platform

    platform.install()
    from megatron.core.transformer import TransformerConfig  # here: reading a config must not take Megatron's seconds

    return TransformerConfig(
        num_layers=hf_config.num_layers,
        hidden_size=hf_config.hidden_size,
        ffn_hidden_size=hf_config.ffn_hidden_size,
        num_attention_heads=hf_config.num_heads,
        num_query_groups=hf_config.num_kv_heads,
        kv_channels=hf_config.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=hf_config.rms_norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=hf_config.qkv_bias,
        qk_layernorm=hf_config.qk_norm,
        softmax_scale=attention_softmax_scale(hf_config),
        attention_dropout=0.0,
        hidden_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        autocast_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        sequence_parallel=layout.sequence_parallel,
        **_context_options(layout),
        **_pipeline_options(layout),
        **_recompute_options(hf_config, layout),
        variable_seq_lengths=True,  # stages tell each other the length of each packed micro-batch
        moe_token_dispatcher_type="alltoall",  # variable_seq_lengths insists on it, for dense models too
        **_expert_options(hf_config, layout, dtype, device),
        calculate_per_token_loss=True,  # gradients are divided once, by the tokens of the whole step
        use_cpu_initialization=not device.has_cuda,
        perform_initialization=False,  # every weight is loaded; see checkpoint/hf_weights.py
        gradient_accumulation_fusion=fuse_weight_gradients and dtype != torch.float64,
        # Fusions that need a compiler, or that this library's own modules make up for.
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
    )


def _context_options(layout: Layout) -> dict[str, Any]:
    """Megatron calls trading tokens against heads a2a."""
    if layout.cp == 1:
        return {}
    exchange = {"all_gather": "all_gather", "all_to_all": "a2a"}[layout.cp_comm]
    return {"context_parallel_size": layout.cp, "cp_comm_type": exchange}


def _pipeline_options(layout: Layout) -> dict[str, Any]:
    """A virtual pipeline needs overlapped exchange: see `check_pipeline_exchange` in schedule.py."""
    if layout.vpp == 1:
        return {}
    return {
        "virtual_pipeline_model_parallel_size": layout.vpp,
        "overlap_p2p_comm": True,
        "batch_p2p_comm": False,
    }


def _recompute_options(hf_config: HFConfig, layout: Layout) -> dict[str, Any]:
    """`full` keeps a layer's input only; `selective` all but the inside of the feed-forward, which is the largest part.

    Attention is not computed again: its kernels keep its output and one number per token and head, nothing more,
    and of a long row it is most of a layer's arithmetic.
    """
    if layout.recompute == "none":
        return {}
    if layout.recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    modules = ["mlp"] if hf_config.moe is None else ["mlp", "moe"]
    return {"recompute_granularity": "selective", "recompute_modules": modules}


def _expert_options(hf_config: HFConfig, layout: Layout, dtype: torch.dtype, device: Device) -> dict[str, Any]:
    """The part of Megatron's config that a mixture of experts adds. No load balancing loss: GRPO has its own loss."""
    moe = hf_config.moe
    if moe is None:
        return {}
    if layout.grouped_experts and not (device.has_cuda and importlib.util.find_spec("transformer_engine")):
        raise LayoutError(
            "grouped_experts = true: it needs CUDA and Transformer Engine, and one of them is missing here; "
            "set grouped_experts = false"
        )
    return {
        "moe_grouped_gemm": layout.grouped_experts,
        "num_moe_experts": moe.num_experts,
        "moe_router_topk": moe.experts_per_token,
        "moe_ffn_hidden_size": moe.ffn_hidden_size,
        # Softmax over all experts and then the best k, or over the best k: the second sums to 1.
        "moe_router_pre_softmax": not moe.norm_topk_prob,
        "moe_router_dtype": "fp64" if dtype == torch.float64 else "fp32",
        "moe_router_load_balancing_type": "none",
        # A list makes checkpoints name each layer; a number lets them stack equal layers.
        "moe_layer_freq": 1 if all(moe.layers) else [int(has_experts) for has_experts in moe.layers],
        "expert_model_parallel_size": layout.ep,
        "expert_tensor_parallel_size": layout.etp,
    }


def attention_softmax_scale(hf_config: HFConfig) -> float:
    """1 / sqrt(head dim), times the square of the attention factor."""
    factor = 1.0 if hf_config.rope_scaling is None else hf_config.rope_scaling.attention_factor
    return factor * factor / math.sqrt(hf_config.head_dim)
