"""Mapping of Hugging Face tensors to Megatron parameters, and how a tensor parallel rank cuts them.

Pure names and slices: used to load, to export, and by whoever moves shards elsewhere.

Each expert is a set of small tensors under the names of save_pretrained; Megatron counts a rank's own experts from 0.

Three ways in which Hugging Face tensors (each [out, in], or [out]) become one parameter of a rank:

    single    the parameter is the rank's part of one tensor
    gate_up   the rank's rows of gate_proj, then its rows of up_proj
    qkv       per key-value head of the rank: the query heads that use it, then it as key, then as value
"""

from __future__ import annotations

import dataclasses
import re
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
    is_expert: bool = False
    """Cut over the expert tensor parallel ranks; other expert parallel ranks hold the same tensors of other experts."""


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
    Rule("mlp.router.weight", ("mlp.gate.weight",), None),
)

EXPERT_RULES = (
    Rule("linear_fc1.weight", ("gate_proj.weight", "up_proj.weight"), 0, "gate_up", is_expert=True),
    Rule("linear_fc2.weight", ("down_proj.weight",), 1, is_expert=True),
)
"""Names relative to an expert."""

_BY_MEGATRON_NAME = {rule.megatron: rule for rule in MODEL_RULES + LAYER_RULES}
_EXPERT_BY_MEGATRON_NAME = {rule.megatron: rule for rule in EXPERT_RULES}
_LAYER_PREFIX = "decoder.layers."
_LOCAL_EXPERT = re.compile(r"mlp\.experts\.local_experts\.(?P<expert>\d+)\.(?P<name>.+)")
"""One module per expert."""
_GROUPED_EXPERT = re.compile(r"mlp\.experts\.(?P<name>linear_fc[12]\.weight)(?P<expert>\d+)")
"""One module for all experts of a rank, as Transformer Engine's grouped linear names its weights."""


class UnmappedParameterError(KeyError):
    """A Megatron parameter has no counterpart in Hugging Face form."""


def rule_for(megatron_name: str, first_layer: int, hf_config: HFConfig, first_expert: int = 0) -> Rule:
    """The rule of a parameter of a stage, with full Hugging Face names. UnmappedParameterError if there is none.

    `first_layer` is the model's index of the stage's layer 0, `first_expert` that of the rank's expert 0. A tied output
    layer reads the embedding.
    """
    name, hf_prefix = megatron_name, ""
    if megatron_name.startswith(_LAYER_PREFIX):
        local_layer, name = megatron_name.removeprefix(_LAYER_PREFIX).split(".", 1)
        hf_prefix = f"model.layers.{first_layer + int(local_layer)}."
    expert = _LOCAL_EXPERT.fullmatch(name) or _GROUPED_EXPERT.fullmatch(name)
    if expert is None:
        rule = _BY_MEGATRON_NAME.get(name)
    else:
        rule = _EXPERT_BY_MEGATRON_NAME.get(expert["name"])
        hf_prefix += f"mlp.experts.{first_expert + int(expert['expert'])}."
    if rule is None:
        raise UnmappedParameterError(f"no Hugging Face name is known for the Megatron parameter {megatron_name}")
    hf_names = tuple(hf_prefix + hf_name for hf_name in rule.hf)
    if name == "output_layer.weight" and hf_config.tied_embeddings:
        hf_names = MODEL_RULES[0].hf
    return dataclasses.replace(rule, megatron=megatron_name, hf=hf_names)


_HF_EXPERT = re.compile(r"(?P<layer>model\.layers\.\d+)\.mlp\.experts\.(?P<expert>\d+)\.")


def expert_of(hf_name: str) -> int:
    """Index in its layer of the expert that `hf_name` belongs to. ValueError if it belongs to none."""
    found = _HF_EXPERT.match(hf_name)
    if found is None:
        raise ValueError(f"{hf_name} is not a tensor of an expert")
    return int(found["expert"])


def with_expert(hf_name: str, expert: int) -> str:
    """The name of the same tensor of another expert of the layer."""
    return _HF_EXPERT.sub(lambda found: f"{found['layer']}.mlp.experts.{expert}.", hf_name)


@dataclass(frozen=True)
class StackedTensor:
    """Where an expert's tensor is in a file that stacks all experts of a layer."""

    name: str
    shape: tuple[int, ...]
    """Shape of the whole stack."""
    expert: int
    first_row: int
    """Row of the expert's matrix at which the tensor begins."""


def stacked_source(hf_name: str, hf_config: HFConfig) -> StackedTensor | None:
    """The stacked form of an expert's tensor, as transformers 5 holds it in memory; None for other tensors.

    gate_up_proj is [experts, 2 x width, hidden] with the gate first, down_proj [experts, hidden, width].
    """
    found = _HF_EXPERT.match(hf_name)
    moe = hf_config.moe
    if found is None or moe is None:
        return None
    prefix, expert, kind = f"{found['layer']}.mlp.experts.", int(found["expert"]), hf_name[found.end() :]
    hidden, ffn = hf_config.hidden_size, moe.ffn_hidden_size
    if kind == "down_proj.weight":
        return StackedTensor(prefix + "down_proj", (moe.num_experts, hidden, ffn), expert, 0)
    first_row = 0 if kind == "gate_proj.weight" else ffn
    return StackedTensor(prefix + "gate_up_proj", (moe.num_experts, 2 * ffn, hidden), expert, first_row)


def expected_shapes(hf_config: HFConfig) -> dict[str, tuple[int, ...]]:
    """Every Hugging Face tensor that the config implies, experts one by one, with its shape."""
    rules = [
        ("", rule) for rule in MODEL_RULES if not (rule.megatron == "output_layer.weight" and hf_config.tied_embeddings)
    ]
    for layer in range(hf_config.num_layers):
        has_experts = hf_config.moe is not None and hf_config.moe.layers[layer]
        prefix = f"model.layers.{layer}."
        rules += [(prefix, rule) for rule in rules_of_layer(hf_config, has_experts)]
        if hf_config.moe is not None and has_experts:
            for expert in range(hf_config.moe.num_experts):
                rules += [(f"{prefix}mlp.experts.{expert}.", rule) for rule in EXPERT_RULES]
    return {
        prefix + hf_name: shape
        for prefix, rule in rules
        for hf_name, shape in zip(rule.hf, hf_shapes(rule, hf_config), strict=True)
    }


def rules_of_layer(hf_config: HFConfig, has_experts: bool) -> tuple[Rule, ...]:
    """Rules of a layer with or without experts; the experts themselves have EXPERT_RULES."""
    return tuple(rule for rule in LAYER_RULES if _is_in_layer(rule, hf_config, has_experts))


def _is_in_layer(rule: Rule, hf_config: HFConfig, has_experts: bool) -> bool:
    if rule.megatron.endswith(("q_layernorm.weight", "k_layernorm.weight")):
        return hf_config.qk_norm
    if rule.megatron.endswith("linear_qkv.bias"):
        return hf_config.qkv_bias
    if rule.megatron.startswith("mlp.router"):
        return has_experts
    return not (has_experts and rule.megatron.startswith("mlp."))


def hf_shapes(rule: Rule, hf_config: HFConfig) -> list[tuple[int, ...]]:
    """Full shape of each Hugging Face tensor of `rule`, as the config implies it."""
    hidden, ffn = hf_config.hidden_size, hf_config.ffn_hidden_size
    if hf_config.moe is not None and rule.megatron.endswith("mlp.router.weight"):
        return [(hf_config.moe.num_experts, hidden)]
    if hf_config.moe is not None and rule.is_expert:
        ffn = hf_config.moe.ffn_hidden_size
        return [(ffn, hidden), (ffn, hidden)] if rule.fuse == "gate_up" else [(hidden, ffn)]
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
