"""Reads the Hugging Face config of a model.

Supported: Qwen2 (so Qwen2.5 and the R1 distillations of it), Qwen3, Qwen3-MoE and Llama, with the position encodings
of rope.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ext.hf.refusals import (
    UnsupportedModelError,
    refuse_heads,
    refuse_impossible,
    refuse_unsupported,
)
from megatron_ext.hf.rope import RopeScaling, UnsupportedRopeError, read_rope


@dataclass(frozen=True)
class Family:
    """Properties that a model type implies and its config does not say."""

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
