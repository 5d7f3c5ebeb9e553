"""The model as blocks: groups of tensors that a pipeline stage holds together, each block repeated by many layers.

A plan is made once per kind of block and rollout rank, not once per layer: layers of a kind differ in nothing but their
names and their stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from hybridflow.weights.reshard.train_layout import place_layer
from megatron_ext.hf.config import HFConfig
from megatron_ext.hf.mapping import MODEL_RULES
from megatron_ext.parallel.layout import Layout

EMBEDDING_RULE, NORM_RULE, HEAD_RULE = MODEL_RULES


class BlockKind(StrEnum):
    EMBEDDING = "embedding"
    DENSE_LAYER = "dense layer"
    EXPERT_LAYER = "expert layer"
    NORM = "norm"
    HEAD = "head"

    @property
    def is_layer(self) -> bool:
        return self in (BlockKind.DENSE_LAYER, BlockKind.EXPERT_LAYER)


class Home(NamedTuple):
    """Where a stage keeps a block."""

    stage: int
    chunk: int
    """Chunk of a virtual pipeline; 0 without one."""
    prefix: str
    """Beginning of the block's Megatron names there."""


@dataclass(frozen=True)
class Block:
    kind: BlockKind
    prefix: str
    """Beginning of the block's SGLang and Hugging Face names."""
    homes: tuple[Home, ...]
    """Several only for tied embeddings: the first stage and the last hold the same rows."""

    @property
    def stages(self) -> tuple[int, ...]:
        return tuple(home.stage for home in self.homes)

    def home(self, stage: int) -> Home:
        """ValueError if the stage does not hold this block."""
        return self.homes[self.stages.index(stage)]


def model_blocks(hf_config: HFConfig, train: Layout) -> tuple[Block, ...]:
    """All blocks that a rollout rank has, in the order of the model."""
    layers = [_layer_block(hf_config, train, layer) for layer in range(hf_config.num_layers)]
    last = (train.pp - 1, train.vpp - 1)
    blocks = [
        Block(BlockKind.EMBEDDING, "", _embedding_homes(hf_config, train)),
        *layers,
        Block(BlockKind.NORM, "", (Home(*last, NORM_RULE.megatron),)),
    ]
    if has_head(hf_config):
        tied = hf_config.tied_embeddings
        homes = _embedding_homes(hf_config, train) if tied else (Home(*last, HEAD_RULE.megatron),)
        blocks.append(Block(BlockKind.HEAD, "", homes))
    return tuple(blocks)


def has_head(hf_config: HFConfig) -> bool:
    """Whether SGLang has an output layer of its own. Its Qwen3-MoE always has one, also where the model ties it to the
    embedding (0.5.23, models/qwen3_moe.py)."""
    return not hf_config.tied_embeddings or hf_config.model_type == "qwen3_moe"


def has_experts(hf_config: HFConfig, layer: int) -> bool:
    return hf_config.moe is not None and hf_config.moe.layers[layer]


def _layer_block(hf_config: HFConfig, train: Layout, layer: int) -> Block:
    place = place_layer(train, hf_config.num_layers, layer)
    home = Home(place.stage, place.chunk, f"decoder.layers.{place.layer}.")
    kind = BlockKind.EXPERT_LAYER if has_experts(hf_config, layer) else BlockKind.DENSE_LAYER
    return Block(kind, f"model.layers.{layer}.", (home,))


def _embedding_homes(hf_config: HFConfig, train: Layout) -> tuple[Home, ...]:
    """With tied embeddings the last of several stages keeps an equal copy as its output layer."""
    first = Home(0, 0, EMBEDDING_RULE.megatron)
    if hf_config.tied_embeddings and train.pp > 1:
        return first, Home(train.pp - 1, train.vpp - 1, HEAD_RULE.megatron)
    return (first,)
