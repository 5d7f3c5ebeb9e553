"""Which Hugging Face tensors make up which Megatron parameter, and how a tensor parallel rank cuts them.

Pure names and slices: used to load, to export, and by whoever moves shards elsewhere.

Three ways in which Hugging Face tensors (each [out, in], or [out]) become one parameter of a rank:

    single    the parameter is the rank's part of one tensor
    gate_up   the rank's rows of gate_proj, then its rows of up_proj
    qkv       per key-value head of the rank: the query heads that use it, then it as key, then as value
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megatron_ext.hf.config import HFConfig

Fuse = Literal["single", "gate_up", "qkv"]


@dataclass(frozen=True)
class Rule:
    """One Megatron parameter. Names of layer rules are relative to the layer."""

    megatron: str
    hf: tuple[str, ...]
    cut_dim: int | None
    """Dimension of the Hugging Face tensors that is spread over the ranks; None where each rank has the whole."""
    fuse: Fuse = "single"
    is_vocab: bool = False
    """Rows are vocabulary entries, so that Megatron's may be padded."""


MODEL_RULES = (
    Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), 0, is_vocab=True),
    Rule("decoder.final_layernorm.weight", ("model.norm.weight",), None),
    Rule("output_layer.weight", ("lm_head.weight",), 0, is_vocab=True),
)

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

LAYER_RULES = (
    Rule("input_layernorm.weight", ("input_layernorm.weight",), None),
    Rule("self_attention.linear_qkv.weight", tuple(f"{name}.weight" for name in _QKV), 0, "qkv"),
    Rule("self_attention.linear_qkv.bias", tuple(f"{name}.bias" for name in _QKV), 0, "qkv"),
    Rule("self_attention.q_layernorm.weight", ("self_attn.q_norm.weight",), None),
    Rule("self_attention.k_layernorm.weight", ("self_attn.k_norm.weight",), None),
    Rule("self_attention.linear_proj.weight", ("self_attn.o_proj.weight",), 1),
    Rule("pre_mlp_layernorm.weight", ("post_attention_layernorm.weight",), None),
    Rule("mlp.linear_fc1.weight", ("mlp.gate_proj.weight", "mlp.up_proj.weight"), 0, "gate_up"),
    Rule("mlp.linear_fc2.weight", ("mlp.down_proj.weight",), 1),
)

_BY_MEGATRON_NAME = {rule.megatron: rule for rule in MODEL_RULES + LAYER_RULES}
_LAYER_PREFIX = "decoder.layers."


class UnmappedParameterError(KeyError):
    """A Megatron parameter has no counterpart in Hugging Face form."""


def rule_for(megatron_name: str, first_layer: int, hf_config: HFConfig) -> Rule:
    """The rule of a parameter of a stage, with full Hugging Face names. UnmappedParameterError if there is none.

    `first_layer` is the model's index of the stage's layer 0. A tied output layer reads the embedding.
    """
    name, hf_prefix = megatron_name, ""
    if megatron_name.startswith(_LAYER_PREFIX):
        local_layer, name = megatron_name.removeprefix(_LAYER_PREFIX).split(".", 1)
        hf_prefix = f"model.layers.{first_layer + int(local_layer)}."
    rule = _BY_MEGATRON_NAME.get(name)
    if rule is None:
        raise UnmappedParameterError(f"no Hugging Face name is known for the Megatron parameter {megatron_name}")
    hf_names = tuple(hf_prefix + hf_name for hf_name in rule.hf)
    if name == "output_layer.weight" and hf_config.tied_embeddings:
        hf_names = MODEL_RULES[0].hf
    return Rule(megatron_name, hf_names, rule.cut_dim, rule.fuse, rule.is_vocab)


def hf_shapes(rule: Rule, hf_config: HFConfig) -> list[tuple[int, ...]]:
    """Full shape of each Hugging Face tensor of `rule`, as the config implies it."""
    hidden, ffn = hf_config.hidden_size, hf_config.ffn_hidden_size
    query_size = hf_config.num_heads * hf_config.head_dim
    kv_size = hf_config.num_kv_heads * hf_config.head_dim
    if rule.fuse == "qkv":
        sizes = (query_size, kv_size, kv_size)
        return [(size,) if rule.megatron.endswith("bias") else (size, hidden) for size in sizes]
    if rule.fuse == "gate_up":
        return [(ffn, hidden), (ffn, hidden)]
    if rule.is_vocab:
        return [(hf_config.vocab_size, hidden)]
    if rule.megatron.endswith("linear_proj.weight"):
        return [(hidden, query_size)]
    if rule.megatron.endswith("linear_fc2.weight"):
        return [(hidden, ffn)]
    if rule.megatron.endswith(("q_layernorm.weight", "k_layernorm.weight")):
        return [(hf_config.head_dim,)]
    return [(hidden,)]


def rank_range(size: int, tp_rank: int, tp_size: int) -> tuple[int, int]:
    """[start, stop) of a dimension of `size` entries on a rank; the last ranks may get fewer, where it is padded."""
    per_rank = -(-size // tp_size)
    return min(tp_rank * per_rank, size), min((tp_rank + 1) * per_rank, size)


def fuse_parts(parts: Sequence[Tensor], fuse: Fuse, num_kv_heads: int) -> Tensor:
    """The rank's parameter from its parts of the Hugging Face tensors; `num_kv_heads` is the rank's."""
    if fuse == "single":
        return parts[0]
    if fuse == "gate_up":
        return torch.cat(list(parts))
    per_head = [part.reshape(num_kv_heads, -1, *part.shape[1:]) for part in parts]
    return torch.cat(per_head, dim=1).flatten(0, 1)


def split_parts(parameter: Tensor, fuse: Fuse, hf_config: HFConfig, num_kv_heads: int) -> Iterator[Tensor]:
    """The inverse of `fuse_parts`: this rank's part of each Hugging Face tensor, contiguous."""
    if fuse == "single":
        yield parameter
    elif fuse == "gate_up":
        yield from parameter.chunk(2)
    else:
        query_rows = hf_config.num_heads // hf_config.num_kv_heads * hf_config.head_dim
        per_head = parameter.view(num_kv_heads, -1, *parameter.shape[1:])
        for part in per_head.split([query_rows, hf_config.head_dim, hf_config.head_dim], dim=1):
            yield part.flatten(0, 1)
