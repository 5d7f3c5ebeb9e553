"""Reshard plan: which bytes go where when the trainer's weights become the engines'.

    plan.engines                    GPU of each rank of each engine: how the launcher has to start them
    plan.copies_to(rank)            every copy that fills the engine's parameters on GPU `rank`
    plan.padding_of(rank)           what that GPU fills with zeros by itself

Made by planner.py, put in order for transports by schedule.py. Trainer rank i is on GPU i; engines share the same GPUs,
some of which may have none. A plan holds patterns, one per kind of block and rollout rank, and a source for each GPU
and part; copies are made from these on demand, so that a model of hundreds of layers takes no more time or memory to
plan than one layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from hybridflow.weights.reshard.blocks import Block, BlockKind
from hybridflow.weights.reshard.placement import Engines, Link, link_between
from hybridflow.weights.reshard.regions import Region
from hybridflow.weights.reshard.rollout_layout import RolloutLayout
from hybridflow.weights.reshard.sources import Pattern, Piece, Sources, Supply
from hybridflow.weights.reshard.train_layout import stage_of
from megatron_ext.hf.config import HFConfig
from megatron_ext.parallel.layout import Layout


class Copy(NamedTuple):
    """A rectangle of a parameter of the trainer that becomes a rectangle of a parameter of an engine.

    Parameters are seen as matrices: `tensor.view(-1, tensor.shape[-1])`, and a vector [n] as [n, 1].
    """

    source: int
    """Trainer rank."""
    chunk: int
    """Chunk of the source's virtual pipeline; 0 without one."""
    tensor: str
    """Megatron name of the source's parameter, as `named_parameters` of that chunk has it."""
    origin: Region
    """In that parameter."""
    destination: int
    """GPU of the engine's rank."""
    parameter: str
    """SGLang's name of that rank's parameter."""
    region: Region
    """In that parameter; as many rows and columns as `origin`."""


class Padding(NamedTuple):
    """A rectangle of an engine's parameter that its own rank fills with zeros."""

    parameter: str
    region: Region


@dataclass(frozen=True)
class ReshardPlan:
    """Made, and proven exact, by `plan_reshard` in planner.py."""

    hf_config: HFConfig
    train: Layout
    rollout: RolloutLayout
    gpus_per_node: int
    blocks: tuple[Block, ...]
    patterns: dict[tuple[BlockKind, int], Pattern]
    """For each kind of block and rank of an engine."""
    engines: Engines
    sources: Sources

    @property
    def world_size(self) -> int:
        return self.train.world_size

    @cached_property
    def tp_rank_of(self) -> dict[int, int]:
        """Rank of its engine that runs on a GPU."""
        return {gpu: tp_rank for engine in self.engines for tp_rank, gpu in enumerate(engine)}

    def pattern_of(self, gpu: int, kind: BlockKind) -> Pattern:
        return self.patterns[kind, self.tp_rank_of[gpu]]

    def source_of(self, gpu: int, block: Block, piece: Piece) -> int:
        return self.sources[gpu, Supply(block.stages, piece.part)]

    def link(self, source: int, destination: int) -> Link:
        return link_between(source, destination, self.gpus_per_node)

    def copy(self, gpu: int, block: Block, piece: Piece) -> Copy:
        """The copy that `piece` means for one block and one GPU."""
        source = self.source_of(gpu, block, piece)
        home = block.home(stage_of(self.train, source))
        parameter = block.prefix + self.pattern_of(gpu, block.kind).targets[piece.target].name
        return Copy(source, home.chunk, home.prefix + piece.source, piece.origin, gpu, parameter, piece.region)

    def copies_to(self, gpu: int) -> Iterator[Copy]:
        """All copies that a GPU receives, from itself too, in the order of the model."""
        for block in self.blocks:
            for piece in self.pattern_of(gpu, block.kind).pieces:
                yield self.copy(gpu, block, piece)

    def padding_of(self, gpu: int) -> Iterator[Padding]:
        for block in self.blocks:
            pattern = self.pattern_of(gpu, block.kind)
            for target, region in pattern.padding:
                yield Padding(block.prefix + pattern.targets[target].name, region)

    def __repr__(self) -> str:
        return f"<ReshardPlan of {len(self.blocks)} blocks from {self.train} to {self.rollout}>"
