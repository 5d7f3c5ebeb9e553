"""Patterns of copies for one kind of block, and sources of their parts: which of several equal ranks sends each.

Nearest first: the same GPU, then the same node, then another node. Among equally near ranks the one that sends least so
far, so that data and context parallel replicas share the work. A GPU takes all of a part from one rank: what it
receives limits it, not what one rank can send, and few pairs of ranks then have to talk.

A pattern says which rectangle of one rollout rank comes from which part of a stage. It knows neither ranks nor layers,
so it serves every layer of its kind and every engine.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybridflow.errors import WeightSyncError
from hybridflow.weights.reshard.blocks import Block, BlockKind
from hybridflow.weights.reshard.placement import Engines, Link, link_between
from hybridflow.weights.reshard.regions import Region, Segment, Shard
from hybridflow.weights.reshard.train_layout import Part, holders
from megatron_ext.parallel.layout import Layout


class Piece(NamedTuple):
    """A rectangle of a rollout parameter that comes from one rectangle of one training parameter."""

    target: int
    """Index of the parameter in `Pattern.targets`."""
    region: Region
    """In that parameter."""
    part: Part
    source: str
    """Megatron name, relative to the block's home."""
    origin: Region
    """In that parameter; as many rows and columns as `region`."""
    gathers: bool
    """Whether the origin is not contiguous in memory: it has to be packed to travel as a message."""
    scatters: bool
    """Whether the region is not contiguous in memory."""


@dataclass(frozen=True)
class Pattern:
    targets: tuple[Shard, ...]
    pieces: tuple[Piece, ...]

    @property
    def padding(self) -> list[tuple[int, Region]]:
        """Index of a parameter and a rectangle of it that its rank fills with zeros."""
        return [(index, region) for index, shard in enumerate(self.targets) for region in shard.padding]


def build_pattern(train: Iterable[tuple[Part, Shard]], targets: Sequence[Shard]) -> Pattern:
    """Every overlap of what the parts hold with what the targets need.

    Raises WeightSyncError for a tensor that no part holds. Whether the pieces fill the targets is for `prove_exact` to
    say.
    """
    held: dict[str, list[tuple[Part, Shard, Segment]]] = {}
    for part, shard in train:
        for segment in shard.segments:
            held.setdefault(segment.tensor, []).append((part, shard, segment))
    pieces: list[Piece] = []
    for index, target in enumerate(targets):
        for needed in target.segments:
            if needed.tensor not in held:
                raise WeightSyncError(f"{target.name}: no rank of the trainer holds its tensor {needed.tensor}")
            for part, shard, segment in held[needed.tensor]:
                common = needed.origin.overlap(segment.origin)
                if common is not None:
                    region = common.moved(needed.region.row - needed.row, needed.region.col - needed.col)
                    origin = common.moved(segment.region.row - segment.row, segment.region.col - segment.col)
                    gathers, scatters = _has_gaps(origin, shard), _has_gaps(region, target)
                    pieces.append(Piece(index, region, part, shard.name, origin, gathers, scatters))
    return Pattern(tuple(targets), tuple(pieces))


def _has_gaps(region: Region, shard: Shard) -> bool:
    return region.cols < shard.cols and region.rows > 1


class Supply(NamedTuple):
    """Something that equal ranks hold: a part of the tensors of some stages."""

    stages: tuple[int, ...]
    part: Part


Sources = dict[tuple[int, Supply], int]
"""The rank from which a GPU takes what it needs of a supply."""

Needs = list[dict[Supply, int]]
"""For each rank of an engine, how many elements it needs of each supply."""


def count_needs(blocks: Sequence[Block], patterns: Mapping[tuple[BlockKind, int], Pattern], tp: int) -> Needs:
    num_blocks = Counter((block.kind, block.stages) for block in blocks)
    needs: Needs = []
    for tp_rank in range(tp):
        elements: dict[Supply, int] = defaultdict(int)
        for (kind, stages), count in num_blocks.items():
            for piece in patterns[kind, tp_rank].pieces:
                elements[Supply(stages, piece.part)] += count * piece.region.size
        needs.append(dict(elements))
    return needs


def count_held(needs: Needs, train: Layout) -> NDArray[np.int64]:
    """[GPU, rank of an engine]: how many of the elements that the rank needs are on the GPU."""
    held_GR = np.zeros((train.world_size, len(needs)), np.int64)
    for tp_rank, elements in enumerate(needs):
        for supply, count in elements.items():
            held_GR[holders(train, *supply), tp_rank] += count
    return held_GR


def choose_sources(needs: Needs, train: Layout, engines: Engines, gpus_per_node: int) -> Sources:
    """One source for each GPU and supply. Largest first, so that what is left evens out the loads."""
    held_by = {supply: holders(train, *supply) for elements in needs for supply in elements}
    wanted = [
        (-count, gpu, supply)
        for ranks in engines
        for tp_rank, gpu in enumerate(ranks)
        for supply, count in needs[tp_rank].items()
    ]
    sources: Sources = {}
    sent: dict[Link, list[int]] = {link: [0] * train.world_size for link in Link}
    for negative, gpu, supply in sorted(wanted):
        link, nearest = _nearest(held_by[supply], gpu, gpus_per_node)
        # On a tie the rank at the same place of its node: networks join these by the shortest way.
        source = min(nearest, key=lambda rank: (sent[link][rank], rank % gpus_per_node != gpu % gpus_per_node, rank))
        sent[link][source] -= negative
        sources[gpu, supply] = source
    return sources


def _nearest(ranks: list[int], gpu: int, gpus_per_node: int) -> tuple[Link, list[int]]:
    links = {rank: link_between(rank, gpu, gpus_per_node) for rank in ranks}
    for link in Link:
        nearest = [rank for rank in ranks if links[rank] is link]
        if nearest:
            return link, nearest
    raise AssertionError("a supply without holders cannot be made")
