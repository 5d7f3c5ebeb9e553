"""Reads a Hugging Face config and turns it into Megatron's.

Supported: dense Qwen3, Qwen2 (so Qwen2.5 and the R1 distillations of it) and Llama without rope scaling.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from megatron.core.transformer import TransformerConfig

    from megatron_ext.layout import Layout


class UnsupportedModelError(ValueError):
    """The model has a property that this library does not reproduce. The message names it."""


@dataclass(frozen=True)
class Family:
    """What a model type implies and its config does not say."""

    qk_norm: bool
    qkv_bias: bool


FAMILIES = {
    "qwen3": Family(qk_norm=True, qkv_bias=False),
    "qwen2": Family(qk_norm=False, qkv_bias=True),
    "llama": Family(qk_norm=False, qkv_bias=False),
}


@dataclass(frozen=True)
class HFConfig:
    """The properties of a model that training needs, under one name each."""

    model_type: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    """Rows of the embedding as saved; Megatron's may be padded, see `padded_vocab_size`."""
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tied_embeddings: bool
    qk_norm: bool
    qkv_bias: bool


def read_hf_config(hf_dir: str | Path) -> HFConfig:
    """Reads `hf_dir`/config.json through transformers, from disk only.

    Raises UnsupportedModelError naming what is not supported, OSError when there is no config.
    """
    from transformers import AutoConfig  # seconds to import, and not needed by those who only want HFConfig

    config = AutoConfig.from_pretrained(str(hf_dir), local_files_only=True)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedModelError(f"model_type = {config.model_type!r}: supported are {', '.join(sorted(FAMILIES))}")
    _refuse_unsupported(config)
    return HFConfig(
        model_type=config.model_type,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=read_rope_theta(config),
        tied_embeddings=bool(config.tie_word_embeddings),
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias,
    )


def read_rope_theta(config: Any) -> float:
    """Base of the rotary embedding: `rope_parameters` (transformers 5) or `rope_theta` (before).

    Raises UnsupportedModelError for any rope scaling, and when no base is given.
    """
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    rope_type = parameters.get("rope_type", parameters.get("type", "default"))
    if rope_type != "default":
        raise UnsupportedModelError(f"rope_type = {rope_type!r}: rope scaling is not supported yet, only 'default'")
    theta = parameters.get("rope_theta", getattr(config, "rope_theta", None))
    if theta is None:
        raise UnsupportedModelError("neither rope_parameters.rope_theta nor rope_theta is in the config")
    return float(theta)


def _refuse_unsupported(config: Any) -> None:
    required = {
        "hidden_act": "silu",
        "use_sliding_window": False,
        "attention_bias": False,
        "mlp_bias": False,
    }
    for key, wanted in required.items():
        value = getattr(config, key, wanted)
        if value != wanted:
            raise UnsupportedModelError(f"{key} = {value!r} ({config.model_type}): only {wanted!r} is supported")


def padded_vocab_size(hf_config: HFConfig, tp: int) -> int:
    """Vocabulary size rounded up to a multiple of `tp`, so that every rank holds as many rows."""
    return -(-hf_config.vocab_size // tp) * tp


def transformer_config(hf_config: HFConfig, layout: Layout, dtype: torch.dtype) -> TransformerConfig:
    """Megatron's config for this model, layout and parameter dtype (float32 or bfloat16).

    Raises UnsupportedModelError for another dtype.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise UnsupportedModelError(f"dtype = {dtype}: only float32 and bfloat16 are supported")

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
        attention_dropout=0.0,
        hidden_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        autocast_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        sequence_parallel=layout.sequence_parallel,
        variable_seq_lengths=True,  # stages tell each other the length of each packed micro-batch
        moe_token_dispatcher_type="alltoall",  # variable_seq_lengths insists on it, for dense models too
        calculate_per_token_loss=True,  # gradients are divided once, by the tokens of the whole step
        use_cpu_initialization=not torch.cuda.is_available(),
        perform_initialization=False,  # every weight is loaded; see hf/load.py
        # Fusions and kernels that need Apex, Transformer Engine or a compiler.
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
    )
