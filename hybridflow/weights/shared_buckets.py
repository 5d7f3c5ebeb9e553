"""Buckets of whole tensors in shared memory, for engines of the same node.

Ray's object store of a private session has 512 MiB, and an embedding alone may have more: what is above that room is
written to disk, or waits for ever. Only where slots are on several nodes do buckets go by the stores of that cluster,
and `runtime.transport` refuses beforehand what these cannot hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import msgspec
import torch
from torch import Tensor

from hybridflow.weights.manifest import Bucket, TensorEntry
from hybridflow.weights.reshard.buffers import BufferHandle, SharedBuffer, map_buffer

KEPT = 6
"""Buckets whose memory the sender keeps, more than can be on the way: it is two ahead of the driver, which has two
under way at the engines and one in hand."""
ALIGNMENT = 64
"""Bytes at which tensors begin."""


class SharedBucket(msgspec.Struct, frozen=True, kw_only=True):
    """A `Bucket` whose tensors lie in memory that the reader maps, in the order of `entries`."""

    version: int
    source: str
    entries: list[TensorEntry]
    handle: BufferHandle


class BucketMemory:
    """The sender's end: the memory of its last buckets."""

    def __init__(self) -> None:
        self._kept: deque[SharedBuffer] = deque()

    def share(self, buckets: Iterable[Bucket]) -> Iterator[SharedBucket]:
        """Copies each bucket into shared memory; the memory of earlier ones goes back as new ones come."""
        for bucket in buckets:
            buffer = SharedBuffer(_places(bucket.entries)[-1])
            for place, tensor in zip(_cut(buffer.bytes_B, bucket.entries), bucket.tensors, strict=True):
                place.copy_(tensor)
            self._kept.append(buffer)
            while len(self._kept) > KEPT:
                self._kept.popleft().close()
            yield SharedBucket(
                version=bucket.version, source=bucket.source, entries=bucket.entries, handle=buffer.handle
            )

    def close(self) -> None:
        while self._kept:
            self._kept.popleft().close()


def open_bucket(shared: SharedBucket) -> Bucket:
    """The reader's end. Raises WeightSyncError if the sender is gone, or on another machine."""
    tensors = list(_cut(map_buffer(shared.handle), shared.entries))
    return Bucket(version=shared.version, source=shared.source, entries=shared.entries, tensors=tensors)


def _cut(bytes_B: Tensor, entries: list[TensorEntry]) -> Iterator[Tensor]:
    for entry, start in zip(entries, _places(entries), strict=False):
        dtype: torch.dtype = getattr(torch, entry.dtype)
        size = torch.Size(entry.shape).numel() * dtype.itemsize
        yield bytes_B[start : start + size].view(dtype).view(entry.shape)


def _places(entries: list[TensorEntry]) -> list[int]:
    """First byte of each tensor, and one behind the last."""
    places = [0]
    for entry in entries:
        size = torch.Size(entry.shape).numel() * getattr(torch, entry.dtype).itemsize
        places.append(places[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
    return places
