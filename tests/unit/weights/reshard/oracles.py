"""Integer-coded models, and independent cutters of them: what each Megatron rank and each SGLang rank holds.

Every element of a model has a number of its own, so a shard says of each element where it came from. Nothing here is
taken from the planner: Megatron's cuts are written with reshapes and splits, SGLang's the way its weight loaders copy
(narrow the parameter, narrow the loaded tensor, copy). Vocabulary padding of Megatron is GARBAGE: it must not arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from megatron_ext.hf.config import HFConfig
from megatron_ext.parallel.layout import Layout

Array = NDArray[np.int64]
GARBAGE = -7
UNWRITTEN = -1


def full_tensors(config: HFConfig) -> dict[str, Array]:
    """Every Hugging Face tensor of the model; numbers go up from 1 over all of them."""
    tensors: dict[str, Array] = {}
    next_number = 1
    for name, shape in hf_shapes(config):
        count = int(np.prod(shape))
        tensors[name] = np.arange(next_number, next_number + count).reshape(shape)
        next_number += count
    return tensors


def hf_shapes(config: HFConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, ffn = config.hidden_size, config.ffn_hidden_size
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        for name, rows in (("q", query), ("k", key), ("v", key)):
            yield f"{prefix}self_attn.{name}_proj.weight", (rows, hidden)
            if config.qkv_bias:
                yield f"{prefix}self_attn.{name}_proj.bias", (rows,)
        if config.qk_norm:
            yield prefix + "self_attn.q_norm.weight", (config.head_dim,)
            yield prefix + "self_attn.k_norm.weight", (config.head_dim,)
        yield prefix + "self_attn.o_proj.weight", (hidden, query)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        if config.moe is None:
            mlps = {"mlp.": ffn}
        else:
            yield prefix + "mlp.gate.weight", (config.moe.num_experts, hidden)
            mlps = {f"mlp.experts.{e}.": config.moe.ffn_hidden_size for e in range(config.moe.num_experts)}
        for mlp, width in mlps.items():
            yield f"{prefix}{mlp}gate_proj.weight", (width, hidden)
            yield f"{prefix}{mlp}up_proj.weight", (width, hidden)
            yield f"{prefix}{mlp}down_proj.weight", (hidden, width)
    yield "model.norm.weight", (hidden,)
    if not config.tied_embeddings:
        yield "lm_head.weight", (config.vocab_size, hidden)


def cut_megatron(config: HFConfig, layout: Layout, hf: dict[str, Array], rank: int) -> dict[tuple[int, str], Array]:
    """Parameters of a rank by (chunk of its virtual pipeline, name)."""
    grid = np.arange(layout.world_size)
    (stage, _, _, tp), *_ = np.argwhere(grid.reshape(layout.pp, layout.dp, layout.cp, layout.tp) == rank)
    (_, _, ep, etp), *_ = np.argwhere(grid.reshape(layout.pp, -1, layout.ep, layout.etp) == rank)
    shard: dict[tuple[int, str], Array] = {}

    def split(array: Array, axis: int) -> Array:
        return np.split(array, layout.tp, axis)[tp]

    def vocab(array: Array) -> Array:
        missing = -len(array) % layout.tp
        return split(np.concatenate([array, np.full((missing, array.shape[1]), GARBAGE)]), 0)

    embedding = hf["model.embed_tokens.weight"]
    if stage == 0:
        shard[0, "embedding.word_embeddings.weight"] = vocab(embedding)
    if stage == layout.pp - 1:
        shard[layout.vpp - 1, "decoder.final_layernorm.weight"] = hf["model.norm.weight"]
        if not config.tied_embeddings:
            shard[layout.vpp - 1, "output_layer.weight"] = vocab(hf["lm_head.weight"])
        elif layout.pp > 1:
            shard[layout.vpp - 1, "output_layer.weight"] = vocab(embedding)
    layers = np.arange(config.num_layers).reshape(layout.vpp, layout.pp, -1)
    for chunk in range(layout.vpp):
        for local, layer in enumerate(layers[chunk, stage]):
            tensors = {name: hf[f"model.layers.{layer}.{name}"] for name in layer_names(config)}
            for name, value in _cut_layer(config, layout, tensors, split, int(ep), int(etp)):
                shard[chunk, f"decoder.layers.{local}.{name}"] = value
    return shard


def layer_names(config: HFConfig) -> list[str]:
    prefix = "model.layers.0."
    return [name.removeprefix(prefix) for name, _ in hf_shapes(config) if name.startswith(prefix)]


def _cut_layer(
    config: HFConfig, layout: Layout, hf: dict[str, Array], split: Callable[[Array, int], Array], ep: int, etp: int
) -> Iterator[tuple[str, Array]]:
    yield "input_layernorm.weight", hf["input_layernorm.weight"]
    yield "pre_mlp_layernorm.weight", hf["post_attention_layernorm.weight"]
    for suffix in ("weight", "bias") if config.qkv_bias else ("weight",):
        parts = [hf[f"self_attn.{name}_proj.{suffix}"] for name in "qkv"]
        by_head = [part.reshape(config.num_kv_heads, -1, *part.shape[1:]) for part in parts]
        mine = split(np.concatenate(by_head, axis=1), 0)
        yield f"self_attention.linear_qkv.{suffix}", mine.reshape(-1, *mine.shape[2:])
    if config.qk_norm:
        yield "self_attention.q_layernorm.weight", hf["self_attn.q_norm.weight"]
        yield "self_attention.k_layernorm.weight", hf["self_attn.k_norm.weight"]
    yield "self_attention.linear_proj.weight", split(hf["self_attn.o_proj.weight"], 1)
    if config.moe is None:
        yield "mlp.linear_fc1.weight", np.concatenate([split(hf[f"mlp.{n}_proj.weight"], 0) for n in ("gate", "up")])
        yield "mlp.linear_fc2.weight", split(hf["mlp.down_proj.weight"], 1)
        return
    yield "mlp.router.weight", hf["mlp.gate.weight"]
    for local, expert in enumerate(np.split(np.arange(config.moe.num_experts), layout.ep)[ep]):
        gate, up, down = (hf[f"mlp.experts.{expert}.{name}_proj.weight"] for name in ("gate", "up", "down"))
        halves = [np.split(half, layout.etp)[etp] for half in (gate, up)]
        yield expert_name(layout, local, "linear_fc1.weight"), np.concatenate(halves)
        yield expert_name(layout, local, "linear_fc2.weight"), np.split(down, layout.etp, 1)[etp]


def expert_name(layout: Layout, local: int, name: str) -> str:
    return f"mlp.experts.{name}{local}" if layout.grouped_experts else f"mlp.experts.local_experts.{local}.{name}"


def cut_sglang(config: HFConfig, tp: int, ep: int, hf: dict[str, Array], rank: int) -> dict[str, Array]:
    """Parameters of rank `rank` of an engine of `tp` ranks, after its weight loaders have seen every tensor."""
    shard = {"model.norm.weight": hf["model.norm.weight"]}
    embedding = hf["model.embed_tokens.weight"]
    shard["model.embed_tokens.weight"] = _load_vocab(embedding, tp, rank)
    if not config.tied_embeddings:
        shard["lm_head.weight"] = _load_vocab(hf["lm_head.weight"], tp, rank)
    elif config.model_type == "qwen3_moe":
        shard["lm_head.weight"] = _load_vocab(embedding, tp, rank)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"):
            if f"{prefix}{name}.weight" in hf:
                shard[f"{prefix}{name}.weight"] = hf[f"{prefix}{name}.weight"]
        for suffix in ("weight", "bias") if config.qkv_bias else ("weight",):
            loaded = {name: hf[f"{prefix}self_attn.{name}_proj.{suffix}"] for name in "qkv"}
            shard[f"{prefix}self_attn.qkv_proj.{suffix}"] = _load_qkv(config, loaded, tp, rank)
        shard[prefix + "self_attn.o_proj.weight"] = _narrow(hf[prefix + "self_attn.o_proj.weight"], 1, tp, rank)
        if config.moe is None:
            halves = [_narrow(hf[f"{prefix}mlp.{name}_proj.weight"], 0, tp, rank) for name in ("gate", "up")]
            shard[prefix + "mlp.gate_up_proj.weight"] = np.concatenate(halves)
            shard[prefix + "mlp.down_proj.weight"] = _narrow(hf[prefix + "mlp.down_proj.weight"], 1, tp, rank)
        else:
            shard[prefix + "mlp.gate.weight"] = hf[prefix + "mlp.gate.weight"]
            w13, w2 = _load_experts(config, hf, f"{prefix}mlp.experts.", tp, ep, rank)
            shard[prefix + "mlp.experts.w13_weight"], shard[prefix + "mlp.experts.w2_weight"] = w13, w2
    return shard


def _narrow(loaded: Array, axis: int, size: int, rank: int) -> Array:
    width = loaded.shape[axis] // size
    return loaded.take(range(rank * width, (rank + 1) * width), axis)


def _load_vocab(loaded: Array, tp: int, rank: int) -> Array:
    """VocabParallelEmbedding: __init__, _get_indices, weight_loader."""
    size, padding = len(loaded), 64
    if (size + padding - 1) // padding * padding % tp != 0:
        padding *= tp
    padded = (size + padding - 1) // padding * padding
    per_rank = padded // tp
    start, end = min(rank * per_rank, size), min((rank + 1) * per_rank, size)
    parameter = np.full((per_rank, loaded.shape[1]), UNWRITTEN)
    parameter[: end - start] = loaded[start:end]
    parameter[end - start :] = 0
    return parameter


def _load_qkv(config: HFConfig, loaded: dict[str, Array], tp: int, rank: int) -> Array:
    """QKVParallelLinear: __init__ and weight_loader."""
    num_heads = config.num_heads // tp
    if tp >= config.num_kv_heads:
        num_kv_heads, replicas = 1, tp // config.num_kv_heads
    else:
        num_kv_heads, replicas = config.num_kv_heads // tp, 1
    sizes = {"q": num_heads * config.head_dim, "k": num_kv_heads * config.head_dim, "v": num_kv_heads * config.head_dim}
    parameter = np.full((sum(sizes.values()), *loaded["q"].shape[1:]), UNWRITTEN)
    offset = 0
    for shard_id, size in sizes.items():
        shard_rank = rank if shard_id == "q" else rank // replicas
        parameter[offset : offset + size] = loaded[shard_id][shard_rank * size : (shard_rank + 1) * size]
        offset += size
    return parameter


def _load_experts(
    config: HFConfig, hf: dict[str, Array], prefix: str, tp: int, ep: int, rank: int
) -> tuple[Array, Array]:
    """FusedMoE: _map_global_expert_id_to_local_expert_id, _load_w13 and _load_w2; w1 is gate, w3 is up."""
    assert config.moe is not None
    moe_tp = tp // ep
    moe_ep_rank, moe_tp_rank = rank // moe_tp, rank % moe_tp
    num_local, width = config.moe.num_experts // ep, config.moe.ffn_hidden_size // moe_tp
    w13 = np.full((num_local, 2 * width, config.hidden_size), UNWRITTEN)
    w2 = np.full((num_local, config.hidden_size, width), UNWRITTEN)
    for expert in range(config.moe.num_experts):
        local = expert - moe_ep_rank * num_local
        if 0 <= local < num_local:
            w13[local, :width] = _narrow(hf[f"{prefix}{expert}.gate_proj.weight"], 0, moe_tp, moe_tp_rank)
            w13[local, width:] = _narrow(hf[f"{prefix}{expert}.up_proj.weight"], 0, moe_tp, moe_tp_rank)
            w2[local] = _narrow(hf[f"{prefix}{expert}.down_proj.weight"], 1, moe_tp, moe_tp_rank)
    return w13, w2
