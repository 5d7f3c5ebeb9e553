"""The bucket that a rank hands to its engine's rank in a round, and what all of them hand over together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from hybridflow.errors import WeightSyncError
from hybridflow.weights.digest import digests
from hybridflow.weights.manifest import TensorEntry, compute_crc, describe_tensor
from hybridflow.weights.reshard.buffers import BufferHandle

SAMPLE_PERIOD = 16
"""Number of parameters of which one is read back in an update, another one in the next."""
Verify = Literal["all", "sample", "none"]


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
    """Under SGLang's own names; checksums as `checksums` says."""
    handle: BufferHandle | None
    """Handle of the memory that the engine's processes can map; None on a GPU."""
    payload: bytes | None = None
    """On a GPU: the buffer as SGLang's rank on it opens it, see buffers.py."""
    read_back: dict[str, str] = {}
    """On a GPU: what SGLang's checksum of a parameter will have to be, of those that are read back."""

    @property
    def owner(self) -> str:
        """Both ranks, for error messages."""
        return f"rank {self.tp_rank} of the engine, from train worker {self.rank}"


class ShardRound(msgspec.Struct, frozen=True, kw_only=True):
    """One bucket for each rank of each engine of the plan. Its memory holds it until the next but one is made."""

    version: int
    engines: list[list[ShardBucket]]

    def of_engine(self, index: int) -> list[ShardBucket]:
        """Buckets of an engine, by rank. Engines beyond the plan read those of one within: all engines are alike."""
        return self.engines[index % len(self.engines)]


def checksums(tensors: Sequence[Tensor], *, on_host: bool) -> list[int]:
    """Checksums of tensors: CRC-32 on the host, where that takes least time; else a `digest`, computed there."""
    return [compute_crc(tensor.contiguous()) for tensor in tensors] if on_host else digests(tensors)


def describe_shards(named: Sequence[tuple[str, Tensor]], *, on_host: bool) -> list[TensorEntry]:
    """Entries of the parameters of a round."""
    values = checksums([tensor for _, tensor in named], on_host=on_host)
    return [
        TensorEntry(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), value)
        for (name, tensor), value in zip(named, values, strict=True)
    ]


def is_read_back(verify: Verify, update: int, place: int, version: int) -> bool:
    """Whether SGLang is asked for its checksum of the parameter at `place`; in the first update, 1, of all."""
    if verify == "sample" and update > 1:
        return (place + version) % SAMPLE_PERIOD == 0
    return verify != "none"


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
