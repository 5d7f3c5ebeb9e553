"""Reads a Hugging Face config and turns it into Megatron's.

Supported: Qwen2 (so Qwen2.5 and the R1 distillations of it), Qwen3, Qwen3-MoE and Llama, with the position encodings
of rope.py.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megatron_ext.hf.refusals import (
    UnsupportedModelError,
    refuse_heads,
    refuse_impossible,
    refuse_unsupported,
)
from megatron_ext.layout import LayoutError
from megatron_ext.rope import RopeScaling, UnsupportedRopeError, attention_softmax_scale, read_rope

if TYPE_CHECKING:
    from megatron.core.transformer import TransformerConfig

    from megatron_ext.layout import Layout


@dataclass(frozen=True)
class Family:
    """What a model type implies and its config does not say."""

    qk_norm: bool
    qkv_bias: bool
    has_experts: bool = False


FAMILIES = {
    "qwen3": Family(qk_norm=True, qkv_bias=False),
    "qwen3_moe": Family(qk_norm=True, qkv_bias=False, has_experts=True),
    "qwen2": Family(qk_norm=False, qkv_bias=True),
    "llama": Family(qk_norm=False, qkv_bias=False),
}


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: which layers have it, and its shape there."""

    num_experts: int
    experts_per_token: int
    ffn_hidden_size: int
    """Width of one expert."""
    norm_topk_prob: bool
    """Whether the weights of a token's experts are scaled to sum to 1."""
    layers: tuple[bool, ...]
    """For each layer of the model, whether it has experts; the others have a plain feed-forward."""


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
    rope_scaling: RopeScaling | None = None
    moe: Experts | None = None

    @property
    def window_tokens(self) -> int:
        """Longest sequence that the position encoding was made for."""
        window = self.max_position_embeddings
        return window if self.rope_scaling is None else self.rope_scaling.window_tokens(window)

    @property
    def native_window_tokens(self) -> int:
        """Longest sequence that the model was trained on before its positions were stretched."""
        window = self.max_position_embeddings
        return window if self.rope_scaling is None else self.rope_scaling.native_window_tokens(window)


def read_json_config(hf_dir: str | Path) -> dict[str, Any]:
    """The config as it is written. ValueError for what is no JSON object."""
    path = Path(hf_dir)
    path = path if path.is_file() else path / "config.json"
    try:
        raw = json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds a {type(raw).__name__}, and no object")
    return raw


def read_hf_config(hf_dir: str | Path) -> HFConfig:
    """Reads `hf_dir`/config.json, or the file `hf_dir`, through transformers, from disk only.

    Raises UnsupportedModelError naming what is not supported, OSError when there is no config.
    """
    from transformers import AutoConfig  # seconds to import, and not needed by those who only want HFConfig

    raw = read_json_config(hf_dir)
    model_type = raw.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnsupportedModelError(f"model_type = {model_type!r}: supported are {', '.join(sorted(FAMILIES))}")
    refuse_impossible(raw)
    config = AutoConfig.from_pretrained(str(hf_dir), local_files_only=True, trust_remote_code=False)
    refuse_unsupported(config)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    refuse_heads(config.num_attention_heads, config.num_key_value_heads, head_dim)
    try:
        rope_theta, rope_scaling = read_rope(config)
    except UnsupportedRopeError as error:
        raise UnsupportedModelError(str(error)) from error
    return HFConfig(
        model_type=config.model_type,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=rope_theta,
        tied_embeddings=bool(config.tie_word_embeddings),
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias,
        rope_scaling=rope_scaling,
        moe=_read_experts(config) if family.has_experts else None,
    )


def _read_experts(config: Any) -> Experts:
    """Raises UnsupportedModelError for values that no layer could have."""
    num_experts, per_token = config.num_experts, config.num_experts_per_tok
    if not 1 <= per_token <= num_experts:
        raise UnsupportedModelError(
            f"num_experts_per_tok = {per_token}: it must be between 1 and num_experts = {num_experts}"
        )
    if per_token == 1 and config.norm_topk_prob:
        raise UnsupportedModelError(
            "norm_topk_prob = True with num_experts_per_tok = 1: all weights are 1 and the router cannot learn; "
            "set norm_topk_prob = false or more experts per token"
        )
    dense = set(config.mlp_only_layers or ())
    layers = tuple(
        layer not in dense and (layer + 1) % config.decoder_sparse_step == 0
        for layer in range(config.num_hidden_layers)
    )
    if not any(layers):
        raise UnsupportedModelError(
            f"decoder_sparse_step = {config.decoder_sparse_step}, mlp_only_layers = {sorted(dense)}: "
            "no layer has experts; give it as a dense qwen3"
        )
    return Experts(num_experts, per_token, config.moe_intermediate_size, bool(config.norm_topk_prob), layers)


def padded_vocab_size(hf_config: HFConfig, tp: int) -> int:
    """Vocabulary size rounded up to a multiple of `tp`, so that every rank holds as many rows."""
    return -(-hf_config.vocab_size // tp) * tp


def transformer_config(
    hf_config: HFConfig, layout: Layout, dtype: torch.dtype, *, fuse_weight_gradients: bool = False
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
        **_expert_options(hf_config, layout, dtype),
        calculate_per_token_loss=True,  # gradients are divided once, by the tokens of the whole step
        use_cpu_initialization=not torch.cuda.is_available(),
        perform_initialization=False,  # every weight is loaded; see hf/load.py
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


def _expert_options(hf_config: HFConfig, layout: Layout, dtype: torch.dtype) -> dict[str, Any]:
    """The part of Megatron's config that a mixture of experts adds. No load balancing loss: GRPO has its own loss."""
    moe = hf_config.moe
    if moe is None:
        return {}
    if layout.grouped_experts and not (torch.cuda.is_available() and importlib.util.find_spec("transformer_engine")):
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
