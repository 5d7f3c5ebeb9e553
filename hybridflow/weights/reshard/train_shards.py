"""Shards that a Megatron rank holds of a block, as rectangles of the model's tensors.

Names and cuts come from `megatron_ext.hf.mapping`, by which the same parameters are loaded and exported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from hybridflow.weights.reshard.blocks import EMBEDDING_RULE, HEAD_RULE, NORM_RULE, BlockKind
from hybridflow.weights.reshard.regions import Region, Segment, Shard
from hybridflow.weights.reshard.train_layout import Cut, Part, num_parts
from megatron_ext.hf.config import HFConfig, padded_vocab_size
from megatron_ext.hf.mapping import EXPERT_RULES, Rule, hf_shapes, rank_range, rules_of_layer
from megatron_ext.parallel.layout import Layout


def train_shards(kind: BlockKind, hf_config: HFConfig, train: Layout) -> Iterator[tuple[Part, Shard]]:
    """Every parameter of every part of a block. Names are relative to the block's homes, tensors to its prefix."""
    if not kind.is_layer:
        head = EMBEDDING_RULE if hf_config.tied_embeddings else HEAD_RULE
        rule = {BlockKind.EMBEDDING: EMBEDDING_RULE, BlockKind.NORM: NORM_RULE, BlockKind.HEAD: head}[kind]
        yield from _shards_of_rule(dataclasses.replace(rule, megatron=""), hf_config, train)
        return
    for rule in rules_of_layer(hf_config, has_experts=kind is BlockKind.EXPERT_LAYER):
        yield from _shards_of_rule(rule, hf_config, train)
    if kind is BlockKind.EXPERT_LAYER and hf_config.moe is not None:
        experts_per_rank = hf_config.moe.num_experts // train.ep
        for expert in range(hf_config.moe.num_experts):
            ep_rank, local = divmod(expert, experts_per_rank)
            for rule in EXPERT_RULES:
                yield from _shards_of_rule(_rule_of_expert(rule, expert, local, train), hf_config, train, ep_rank)


def _rule_of_expert(rule: Rule, expert: int, local: int, train: Layout) -> Rule:
    if train.grouped_experts:
        megatron = f"mlp.experts.{rule.megatron}{local}"
    else:
        megatron = f"mlp.experts.local_experts.{local}.{rule.megatron}"
    hf = tuple(f"mlp.experts.{expert}.{name}" for name in rule.hf)
    return dataclasses.replace(rule, megatron=megatron, hf=hf)


def _shards_of_rule(rule: Rule, hf_config: HFConfig, train: Layout, ep_rank: int = 0) -> Iterator[tuple[Part, Shard]]:
    cut: Cut = "expert" if rule.is_expert else "whole" if rule.cut_dim is None else "tensor"
    shapes = hf_shapes(rule, hf_config)
    size = train.etp if rule.is_expert else num_parts(train, cut)
    for rank in range(size):
        ranges = [_region_of_rank(shape, rule.cut_dim, rank, size) for shape in shapes]
        segments = tuple(_segments(rule, ranges, hf_config, size))
        shape = _shard_shape(rule, segments, shapes[0], hf_config, train)
        yield Part(cut, ep_rank * train.etp + rank if rule.is_expert else rank), Shard(rule.megatron, shape, segments)


def _region_of_rank(shape: tuple[int, ...], cut_dim: int | None, rank: int, size: int) -> Region:
    """The rank's rectangle of a whole tensor."""
    rows, cols = shape[0], shape[1] if len(shape) > 1 else 1
    if cut_dim is None:
        return Region(0, 0, rows, cols)
    start, stop = rank_range(shape[cut_dim], rank, size)
    return Region(start, 0, stop - start, cols) if cut_dim == 0 else Region(0, start, rows, stop - start)


def _segments(rule: Rule, ranges: list[Region], hf_config: HFConfig, size: int) -> Iterator[Segment]:
    """The rank's rectangles of the tensors, one under the other in the order that `rule.fuse` says.

    `single` and `gate_up`: tensor after tensor. `qkv`: for each key-value head of the rank its query heads, itself as
    key, itself as value.
    """
    repeats = hf_config.num_kv_heads // size if rule.fuse == "qkv" else 1
    row = 0
    for repeat in range(repeats):
        for tensor, part in zip(rule.hf, ranges, strict=True):
            rows = part.rows // repeats
            region = Region(row, 0, rows, part.cols)
            yield Segment(region, tensor, part.row + repeat * rows, part.col)
            row += rows


def _shard_shape(
    rule: Rule, segments: tuple[Segment, ...], hf_shape: tuple[int, ...], hf_config: HFConfig, train: Layout
) -> tuple[int, ...]:
    rows = sum(segment.region.rows for segment in segments)
    if rule.is_vocab:
        rows = padded_vocab_size(hf_config, train.tp) // train.tp
    return (rows, segments[0].region.cols) if len(hf_shape) > 1 else (rows,)
