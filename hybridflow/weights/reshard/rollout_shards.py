"""Shards of a block at an SGLang rank, as rectangles of the model's tensors, under SGLang's own parameter names.

As unmodified SGLang 0.5.23 allocates and loads unquantised weights of Qwen2, Qwen3, Qwen3-MoE and Llama, which is what
`load_format="direct"` takes:

    qkv_proj        the rank's query heads, then its key heads, then its value heads. With fewer key-value heads than
                    ranks, tp / heads neighbouring ranks each hold the same one (layers/linear.py, QKVParallelLinear)
    gate_up_proj    the rank's rows of gate_proj, then of up_proj (MergedColumnParallelLinear)
    w13_weight      [experts of the rank, gate rows then up rows, hidden], w2_weight [experts, hidden, width]
                    (layers/moe/fused_moe_triton/layer.py)
    embed_tokens,   rows of the vocabulary padded to a multiple of 64, or of 64 tp if that does not divide; the padding
    lm_head         is zero (layers/vocab_parallel_embedding.py)

Not covered: quantised weights, and expert backends that repack weights after loading.
"""

from __future__ import annotations

from collections.abc import Iterator

from hybridflow.weights.reshard.blocks import BlockKind
from hybridflow.weights.reshard.regions import Region, Segment, Shard
from hybridflow.weights.reshard.rollout_layout import RolloutLayout
from megatron_ext.hf.config import Experts, HFConfig

VOCAB_PADDING = 64
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
NORM = "model.norm.weight"


def rollout_shards(kind: BlockKind, hf_config: HFConfig, rollout: RolloutLayout, tp_rank: int) -> tuple[Shard, ...]:
    """The parameters that rank `tp_rank` of an engine has of a block; names and tensors are relative to its prefix."""
    if kind is BlockKind.EMBEDDING:
        return (_vocab_shard(EMBEDDING, EMBEDDING, hf_config, rollout, tp_rank),)
    if kind is BlockKind.HEAD:
        tensor = EMBEDDING if hf_config.tied_embeddings else HEAD
        return (_vocab_shard(HEAD, tensor, hf_config, rollout, tp_rank),)
    if kind is BlockKind.NORM:
        return (_whole(NORM, (hf_config.hidden_size,)),)
    shards = list(_attention_shards(hf_config, rollout, tp_rank))
    if kind is BlockKind.DENSE_LAYER:
        shards += _mlp_shards(hf_config, rollout, tp_rank)
    elif hf_config.moe is not None:
        shards += _expert_shards(hf_config, hf_config.moe, rollout, tp_rank)
    return tuple(shards)


def _attention_shards(hf_config: HFConfig, rollout: RolloutLayout, tp_rank: int) -> Iterator[Shard]:
    hidden, head_dim = hf_config.hidden_size, hf_config.head_dim
    query_rows = hf_config.num_heads // rollout.tp * head_dim
    num_kv_heads = max(1, hf_config.num_kv_heads // rollout.tp)
    ranks_per_kv_head = max(1, rollout.tp // hf_config.num_kv_heads)
    kv_rows = num_kv_heads * head_dim
    kv_start = tp_rank // ranks_per_kv_head * kv_rows
    parts = (("q_proj", tp_rank * query_rows, query_rows), ("k_proj", kv_start, kv_rows), ("v_proj", kv_start, kv_rows))

    yield _whole("input_layernorm.weight", (hidden,))
    for suffix in ("weight", "bias") if hf_config.qkv_bias else ("weight",):
        cols = hidden if suffix == "weight" else 1
        rows = [(f"self_attn.{name}.{suffix}", start, count) for name, start, count in parts]
        yield _stacked(f"self_attn.qkv_proj.{suffix}", rows, cols, is_vector=suffix == "bias")
    if hf_config.qk_norm:
        yield _whole("self_attn.q_norm.weight", (head_dim,))
        yield _whole("self_attn.k_norm.weight", (head_dim,))
    yield _columns("self_attn.o_proj.weight", hidden, tp_rank * query_rows, query_rows)
    yield _whole("post_attention_layernorm.weight", (hidden,))


def _mlp_shards(hf_config: HFConfig, rollout: RolloutLayout, tp_rank: int) -> Iterator[Shard]:
    width = hf_config.ffn_hidden_size // rollout.tp
    rows = [(f"mlp.{name}_proj.weight", tp_rank * width, width) for name in ("gate", "up")]
    yield _stacked("mlp.gate_up_proj.weight", rows, hf_config.hidden_size)
    yield _columns("mlp.down_proj.weight", hf_config.hidden_size, tp_rank * width, width)


def _expert_shards(hf_config: HFConfig, moe: Experts, rollout: RolloutLayout, tp_rank: int) -> Iterator[Shard]:
    hidden = hf_config.hidden_size
    ep_rank, expert_tp_rank = rollout.expert_coordinates(tp_rank)
    count = moe.num_experts // rollout.ep
    width = moe.ffn_hidden_size // rollout.expert_tp
    start = expert_tp_rank * width
    experts = [f"mlp.experts.{expert}." for expert in range(ep_rank * count, (ep_rank + 1) * count)]

    yield _whole("mlp.gate.weight", (moe.num_experts, hidden))
    gate_up = (
        Segment(Region((2 * local + half) * width, 0, width, hidden), f"{expert}{name}_proj.weight", start, 0)
        for local, expert in enumerate(experts)
        for half, name in enumerate(("gate", "up"))
    )
    yield Shard("mlp.experts.w13_weight", (count, 2 * width, hidden), tuple(gate_up))
    down = (
        Segment(Region(local * hidden, 0, hidden, width), f"{expert}down_proj.weight", 0, start)
        for local, expert in enumerate(experts)
    )
    yield Shard("mlp.experts.w2_weight", (count, hidden, width), tuple(down))


def _vocab_shard(name: str, tensor: str, hf_config: HFConfig, rollout: RolloutLayout, tp_rank: int) -> Shard:
    hidden, vocab_size = hf_config.hidden_size, hf_config.vocab_size
    multiple = VOCAB_PADDING
    if -(-vocab_size // multiple) * multiple % rollout.tp:
        multiple *= rollout.tp
    rows = -(-vocab_size // multiple) * multiple // rollout.tp
    start, stop = (min(row, vocab_size) for row in (tp_rank * rows, (tp_rank + 1) * rows))
    filled = stop - start
    segments = (Segment(Region(0, 0, filled, hidden), tensor, start, 0),) if filled else ()
    padding = (Region(filled, 0, rows - filled, hidden),) if filled < rows else ()
    return Shard(name, (rows, hidden), segments, padding)


def _whole(name: str, shape: tuple[int, ...]) -> Shard:
    region = Region(0, 0, shape[0], shape[1] if len(shape) > 1 else 1)
    return Shard(name, shape, (Segment(region, name, 0, 0),))


def _columns(name: str, rows: int, start: int, cols: int) -> Shard:
    return Shard(name, (rows, cols), (Segment(Region(0, 0, rows, cols), name, 0, start),))


def _stacked(name: str, parts: list[tuple[str, int, int]], cols: int, *, is_vector: bool = False) -> Shard:
    """Rows of several tensors under each other; each part is (tensor, first row, number of rows)."""
    segments, row = [], 0
    for tensor, start, rows in parts:
        segments.append(Segment(Region(row, 0, rows, cols), tensor, start, 0))
        row += rows
    return Shard(name, (row,) if is_vector else (row, cols), tuple(segments))
