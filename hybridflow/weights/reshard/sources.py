"""Sources of parts: chooses which of several equal ranks sends each.

Nearest first: the same GPU, then the same node, then another node. Among equally near ranks the one that sends least so
far, so that data and context parallel replicas share the work. A GPU takes all of a part from one rank: what it
receives limits it, not what one rank can send, and few pairs of ranks then have to talk.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybridflow.weights.reshard.blocks import Block, BlockKind
from hybridflow.weights.reshard.pattern import Pattern
from hybridflow.weights.reshard.placement import Engines, Link, link_between
from hybridflow.weights.reshard.train_layout import Part, holders
from megatron_ext.parallel.layout import Layout


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
