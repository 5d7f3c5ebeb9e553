"""What a rank hands to its engine's rank in a round, and what all of them hand over together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from hybridflow.errors import WeightSyncError
from hybridflow.weights.manifest import TensorEntry, describe_tensor
from hybridflow.weights.reshard.buffers import BufferHandle


class ShardBucket(msgspec.Struct, frozen=True, kw_only=True):
    """Whole parameters of one rank of an engine, one after the other in a buffer, in the order of `entries`."""

    version: int
    number: int
    """Round of the schedule."""
    rank: int
    """Train worker that assembled it."""
    engine: int
    tp_rank: int
    entries: list[TensorEntry]
    """Under SGLang's own names."""
    handle: BufferHandle | None
    """Of memory that the engine's processes can map; None on a GPU."""
    payload: bytes | None = None
    """On a GPU: what SGLang's rank on it opens, see device_handover.py."""
    read_back: dict[str, str] = {}
    """On a GPU: what SGLang's checksum of each parameter will have to be."""

    @property
    def owner(self) -> str:
        """For error messages."""
        return f"rank {self.tp_rank} of the engine, from train worker {self.rank}"


class ShardRound(msgspec.Struct, frozen=True, kw_only=True):
    """One bucket for each rank of each engine of the plan. Its memory holds it until the next but one is made."""

    version: int
    engines: list[list[ShardBucket]]

    def of_engine(self, index: int) -> list[ShardBucket]:
        """By rank. Engines beyond those of the plan read the buckets of one within: all engines are alike."""
        return self.engines[index % len(self.engines)]


def cut_buffer(
    bytes_B: Tensor, shapes: Iterable[tuple[str, tuple[int, ...]]], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Name and place of each parameter in a buffer."""
    start = 0
    for name, shape in shapes:
        stop = start + math.prod(shape) * dtype.itemsize
        yield name, bytes_B[start:stop].view(dtype).view(shape)
        start = stop


def read_bucket(bucket: ShardBucket, bytes_B: Tensor) -> list[tuple[str, Tensor]]:
    """The parameters that lie in the bucket's buffer.

    Raises WeightSyncError, naming tensor and ranks, if one is not what its entry says.
    """
    dtypes = {entry.dtype for entry in bucket.entries}
    assert len(dtypes) == 1, "a schedule has one element size, so one dtype"
    shapes = [(entry.name, entry.shape) for entry in bucket.entries]
    named = list(cut_buffer(bytes_B, shapes, getattr(torch, dtypes.pop())))
    for entry, (name, tensor) in zip(bucket.entries, named, strict=True):
        arrived = describe_tensor(name, tensor)
        if arrived != entry:
            raise WeightSyncError(
                f"weights version {bucket.version}: {name} of {bucket.owner} arrived with checksum {arrived.checksum}, "
                f"sent with {entry.checksum}"
            )
    return named


def rank_entries(bucket: ShardBucket) -> list[TensorEntry]:
    """The bucket's entries under names that tell the ranks of an engine apart."""
    return [msgspec.structs.replace(entry, name=f"{entry.name} (rank {bucket.tp_rank})") for entry in bucket.entries]


def check_engines_alike(engines: Sequence[Sequence[ShardBucket]]) -> None:
    """Every engine gets the same. Raises WeightSyncError naming tensor and ranks where train workers disagree."""
    by_rank: dict[int, list[ShardBucket]] = defaultdict(list)
    for bucket in (bucket for buckets in engines for bucket in buckets):
        by_rank[bucket.tp_rank].append(bucket)
    for first, *others in by_rank.values():
        for other in others:
            if other.entries == first.entries:
                continue
            pairs: Iterable[tuple[Any, Any]] = zip(first.entries, other.entries, strict=True)
            name = next(a.name for a, b in pairs if a != b)
            raise WeightSyncError(
                f"weights version {first.version}: {name} differs between engine {first.engine} (assembled by train "
                f"worker {first.rank}) and engine {other.engine} (by train worker {other.rank}), rank {first.tp_rank} "
                "of each: replicas of the trainer have come apart"
            )
