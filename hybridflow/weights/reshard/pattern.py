"""Copies for one kind of block and one rollout rank: which rectangle comes from which part of a stage.

A pattern knows neither ranks nor layers, so it serves every layer of its kind and every engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hybridflow.errors import WeightSyncError
from hybridflow.weights.reshard.regions import Region, Segment, Shard
from hybridflow.weights.reshard.train_layout import Part


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
