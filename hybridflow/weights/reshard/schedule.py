"""A plan as rounds of messages with bounded buffers: what a transport executes.

    schedule = build_schedule(plan, element_bytes=2, bucket_bytes=512 * 2**20)
    for number, round_ in enumerate(schedule.rounds):
        shapes = schedule.parameters(number, rank)        # allocate these; an engine rank gets them whole, then frees
        for name, region in schedule.padding(number, rank): ...        # fill with zeros
        for message in schedule.outgoing(number, rank): ...            # to message.destination
        for message in schedule.incoming(number, rank): ...            # from message.source
        # hand the round's parameters to the engine

**Rounds.** All ranks go through the same rounds in the same order; a round is a bucket on every rank. It holds whole
parameters of SGLang, never a part of one: an engine sees a fused parameter (qkv_proj, gate_up_proj, all experts of a
layer) either as it was or as it will be, and `load_format="direct"` takes only whole ones.

**Messages.** One per pair of ranks and round, both ends listing them in the same order (incoming by source, outgoing by
destination), so point-to-point operations of a round can be posted together without deadlock. A message is the elements
of its copies one after the other, each rectangle row by row, in the dtype that both sides have. On Link.DEVICE (source
and destination are one GPU) and Link.NVLINK the destination's memory can be written in place, through a shared handle,
and nothing needs packing. On Link.NETWORK a rectangle with gaps (`Piece.gathers`, `Piece.scatters`) is packed before it
is sent, or unpacked after.

**Buffers.** A rank's buffer in a round is the parameters that it hands over, plus what it packs, plus what it unpacks.
No rank's is above `bucket_bytes`, unless one parameter alone is: that one has a round of its own. Two rounds may be
under way at a time, one being filled while the other is handed over: `buffer_bytes` is the most that any two
neighbours take.

**Order.** Layers are taken from the pipeline stages in turn, so that the ranks of all stages send at the same time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybridflow.weights.reshard.blocks import Block, BlockKind
from hybridflow.weights.reshard.placement import Link
from hybridflow.weights.reshard.plan import Copy, Padding, ReshardPlan
from hybridflow.weights.reshard.sources import Piece

ROUNDS_UNDER_WAY = 2


class Unit(NamedTuple):
    """A parameter of the engines, on all of their ranks."""

    block: Block
    target: int
    """Index of the parameter in the patterns of the block's kind."""


class Message(NamedTuple):
    """A message of one rank to another in a round."""

    source: int
    destination: int
    link: Link
    copies: tuple[Copy, ...]

    @property
    def num_elements(self) -> int:
        return sum(copy.region.size for copy in self.copies)


@dataclass(frozen=True)
class Round:
    units: tuple[Unit, ...]
    buffer_bytes: tuple[int, ...]
    """Bytes of the buffers of each rank."""


@dataclass(frozen=True)
class Schedule:
    plan: ReshardPlan
    element_bytes: int
    rounds: tuple[Round, ...]

    def parameters(self, number: int, gpu: int) -> list[tuple[str, tuple[int, ...]]]:
        """SGLang's name and shape of each parameter that a GPU's engine rank gets in a round."""
        return [
            (unit.block.prefix + target.name, target.shape)
            for unit in self.rounds[number].units
            for target in [self.plan.pattern_of(gpu, unit.block.kind).targets[unit.target]]
        ]

    def padding(self, number: int, gpu: int) -> list[Padding]:
        return [
            Padding(unit.block.prefix + pattern.targets[target].name, region)
            for unit in self.rounds[number].units
            for pattern in [self.plan.pattern_of(gpu, unit.block.kind)]
            for target, region in pattern.padding
            if target == unit.target
        ]

    def incoming(self, number: int, gpu: int) -> list[Message]:
        """All messages to a GPU in a round, that from itself included, by source."""
        copies: dict[int, list[Copy]] = defaultdict(list)
        for block, piece in self._pieces(number, gpu):
            copy = self.plan.copy(gpu, block, piece)
            copies[copy.source].append(copy)
        return [Message(source, gpu, self.plan.link(source, gpu), tuple(copies[source])) for source in sorted(copies)]

    def outgoing(self, number: int, rank: int) -> list[Message]:
        """All messages from a rank in a round, that to itself included, by destination."""
        messages = []
        for gpu in self._destinations.get(rank, ()):
            pieces = self._pieces(number, gpu)
            own = [(block, piece) for block, piece in pieces if self.plan.source_of(gpu, block, piece) == rank]
            copies = tuple(self.plan.copy(gpu, block, piece) for block, piece in own)
            if copies:
                messages.append(Message(rank, gpu, self.plan.link(rank, gpu), copies))
        return messages

    def buffer_bytes(self, rank: int) -> int:
        """High-water mark: the largest sum over as many neighbouring rounds as may be under way."""
        sizes = [round_.buffer_bytes[rank] for round_ in self.rounds]
        starts = range(max(1, len(sizes) - ROUNDS_UNDER_WAY + 1))
        return max(sum(sizes[start : start + ROUNDS_UNDER_WAY]) for start in starts)

    def _pieces(self, number: int, gpu: int) -> Iterator[tuple[Block, Piece]]:
        for unit in self.rounds[number].units:
            for piece in self._pieces_of_target[unit.block.kind, self.plan.tp_rank_of[gpu]][unit.target]:
                yield unit.block, piece

    @cached_property
    def _pieces_of_target(self) -> Mapping[tuple[BlockKind, int], Mapping[int, list[Piece]]]:
        grouped = {}
        for key, pattern in self.plan.patterns.items():
            grouped[key] = defaultdict(list)
            for piece in pattern.pieces:
                grouped[key][piece.target].append(piece)
        return grouped

    @cached_property
    def _destinations(self) -> Mapping[int, list[int]]:
        """For each rank, the GPUs that take anything from it."""
        pairs = {(source, gpu) for (gpu, _), source in self.plan.sources.items()}
        destinations: dict[int, list[int]] = defaultdict(list)
        for source, gpu in sorted(pairs):
            destinations[source].append(gpu)
        return destinations


def build_schedule(plan: ReshardPlan, *, element_bytes: int, bucket_bytes: int) -> Schedule:
    """Fills rounds, in order, with as many parameters as their buffers hold on every rank. Pure and deterministic."""
    rounds: list[Round] = []
    units: list[Unit] = []
    filled = np.zeros(plan.world_size, np.int64)
    sizes: dict[tuple[BlockKind, tuple[int, ...]], NDArray[np.int64]] = {}
    for block in _in_turn(plan.blocks):
        if (block.kind, block.stages) not in sizes:
            sizes[block.kind, block.stages] = _buffer_elements(plan, block) * element_bytes
        for target, size in enumerate(sizes[block.kind, block.stages]):
            if units and (filled + size).max() > bucket_bytes:
                rounds.append(Round(tuple(units), tuple(filled.tolist())))
                units, filled = [], np.zeros(plan.world_size, np.int64)
            units.append(Unit(block, target))
            filled = filled + size
    rounds.append(Round(tuple(units), tuple(filled.tolist())))
    return Schedule(plan, element_bytes, tuple(rounds))


def _in_turn(blocks: tuple[Block, ...]) -> list[Block]:
    """Each stage's first layer, then each stage's second, and so on; what is not a layer stays before or after them."""
    place: dict[Block, tuple[int, tuple[int, ...]]] = {}
    num_of_stage: dict[tuple[int, ...], int] = defaultdict(int)
    layers = [block for block in blocks if block.kind.is_layer]
    for block in layers:
        place[block] = (num_of_stage[block.stages], block.stages)
        num_of_stage[block.stages] += 1
    first = blocks.index(layers[0])
    return [*blocks[:first], *sorted(layers, key=place.__getitem__), *blocks[first + len(layers) :]]


def _buffer_elements(plan: ReshardPlan, block: Block) -> NDArray[np.int64]:
    """[target, rank]: elements of the parameter itself, of its packed messages and of its unpacked ones."""
    num_targets = len(plan.patterns[block.kind, 0].targets)
    elements = np.zeros((num_targets, plan.world_size), np.int64)
    packed: set[tuple[int, int, Piece]] = set()
    for gpu, tp_rank in plan.tp_rank_of.items():
        pattern = plan.patterns[block.kind, tp_rank]
        elements[:, gpu] += [target.size for target in pattern.targets]
        for piece in pattern.pieces:
            if not (piece.gathers or piece.scatters):
                continue
            source = plan.source_of(gpu, block, piece)
            if plan.link(source, gpu) is not Link.NETWORK:
                continue
            elements[piece.target, gpu] += piece.region.size * piece.scatters
            if piece.gathers and (source, tp_rank, piece) not in packed:  # packed once for all engines
                packed.add((source, tp_rank, piece))
                elements[piece.target, source] += piece.region.size
    return elements
