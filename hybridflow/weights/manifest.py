"""The manifest of what was sent, so that what arrived can be compared with it.

A bucket is a list of whole tensors under HF names, at most `bucket_bytes` together; each tensor travels with its name,
shape, dtype and a CRC-32 of its bytes. The manifest of a version is the set of these entries.
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Iterable, Iterator

import msgspec
import torch

from hybridflow.errors import WeightSyncError


class TensorEntry(msgspec.Struct, frozen=True, order=True):
    """Identity of one tensor: `dtype` as torch writes it without the "torch." prefix. `checksum` is a CRC-32, of
    shards on a GPU their `digest`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    checksum: int


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """Tensors that travel together; `entries[i]` describes `tensors[i]`."""

    version: int
    source: str
    """The sender, for error messages."""
    entries: list[TensorEntry]
    tensors: list[torch.Tensor]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)


def describe_tensor(name: str, tensor: torch.Tensor) -> TensorEntry:
    """Entry of a contiguous CPU tensor."""
    return TensorEntry(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), compute_crc(tensor))


def compute_crc(tensor: torch.Tensor) -> int:
    """CRC-32 of the bytes of a contiguous CPU tensor."""
    # Flat first: a tensor without dimensions cannot be seen as bytes.
    flat = tensor.reshape(-1).view(torch.uint8)
    # Not by way of numpy: a storage that was seen by numpy can no longer be resized, and so not leave a device.
    return zlib.crc32((ctypes.c_char * flat.numel()).from_address(flat.data_ptr()))


def iterate_buckets(
    named_tensors: Iterable[tuple[str, torch.Tensor]], *, version: int, source: str, bucket_bytes: int
) -> Iterator[Bucket]:
    """Packs tensors, in the order given, into buckets of at most `bucket_bytes`; a larger tensor gets its own."""
    entries: list[TensorEntry] = []
    tensors: list[torch.Tensor] = []
    filled = 0
    for name, tensor in named_tensors:
        host = tensor.detach().cpu().contiguous()
        size = host.numel() * host.element_size()
        if tensors and filled + size > bucket_bytes:
            yield Bucket(version=version, source=source, entries=entries, tensors=tensors)
            entries, tensors, filled = [], [], 0
        entries.append(describe_tensor(name, host))
        tensors.append(host)
        filled += size
    if tensors:
        yield Bucket(version=version, source=source, entries=entries, tensors=tensors)


def check_bucket(bucket: Bucket) -> None:
    """Raises WeightSyncError, naming the tensor and the sender, if a tensor is not what its entry says."""
    for entry, tensor in zip(bucket.entries, bucket.tensors, strict=True):
        arrived = describe_tensor(entry.name, tensor)
        if arrived != entry:
            raise WeightSyncError(
                f"weights version {bucket.version}: tensor {entry.name} from {bucket.source} arrived as {arrived}, "
                f"sent as {entry}"
            )


def compare_manifests(sent: list[TensorEntry], loaded: list[TensorEntry], version: int) -> None:
    """Raises WeightSyncError unless both hold the same entries, each exactly once."""
    if sorted(sent) == sorted(loaded):
        return
    sent_names, loaded_names = {e.name for e in sent}, {e.name for e in loaded}
    missing = sorted(sent_names - loaded_names)[:3]
    surplus = sorted(loaded_names - sent_names)[:3]
    changed = sorted(sent_names & loaded_names & {e.name for e in set(sent) ^ set(loaded)})[:3]
    raise WeightSyncError(
        f"weights version {version}: the engine confirms {len(loaded)} tensors, {len(sent)} were sent "
        f"(missing {missing}, surplus {surplus}, differing {changed})"
    )
