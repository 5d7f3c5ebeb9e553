"""The receipt of an engine's rank for a round: the checksum of each parameter as it holds it after copying.

SGLang's calls answer yes or no. So the rank (rollout/sync/rank_loader.py) writes what it found into memory that the
process of the engine's actor made for it; both are on one machine. Consumed once a round; nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch

from hybridflow.errors import WeightSyncError
from hybridflow.weights.manifest import TensorEntry
from hybridflow.weights.reshard.buffers import BufferHandle, SharedBuffer, map_buffer

MISSING = 2**64 - 1
"""Instead of a checksum: the rank has no parameter of this name and shape."""
_SIGNED = 2**63


class ShardOrder(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of the flat tensor of a round for one rank, and where it confirms it; travels as JSON."""

    version: int
    number: int
    dtype: str
    shapes: list[tuple[str, tuple[int, ...]]]
    """By SGLang's name, in the order of the tensor."""
    on_host: bool
    """Checksums are CRC-32, else `digest`."""
    receipt: BufferHandle


class Receipt:
    """The engine's end. Used for one round after the other; `open` begins one."""

    def __init__(self) -> None:
        self._buffer: SharedBuffer | None = None

    def open(self, num_parameters: int) -> BufferHandle:
        """Memory for a round, cleared."""
        num_bytes = 8 * (num_parameters + 2)
        if self._buffer is None or self._buffer.handle.num_bytes < num_bytes:
            self.close()
            self._buffer = SharedBuffer(num_bytes)
        self._buffer.bytes_B.zero_()
        return self._buffer.handle

    def check(self, version: int, number: int, entries: Sequence[TensorEntry], owner: str) -> None:
        """Holds what the rank found against what was sent.

        Raises WeightSyncError, naming tensor and ranks, for a parameter that differs or is not there, or where the rank
        confirmed nothing.
        """
        assert self._buffer is not None, "open was not called"
        words_W = self._buffer.bytes_B[: 8 * (len(entries) + 2)].view(torch.int64)
        start, *found = words_W.tolist()
        if (start, found[-1]) != (number + 1, version):
            raise WeightSyncError(f"weights version {version}: {owner} did not confirm round {number} of shards")
        for entry, value in zip(entries, found, strict=False):
            checksum = value % (2 * _SIGNED)
            if checksum != entry.checksum:
                what = "does not hold it" if checksum == MISSING else f"has checksum {checksum} of it"
                raise WeightSyncError(
                    f"weights version {version}: {entry.name} of {owner}, sent with checksum {entry.checksum}: "
                    f"after the update SGLang's rank {what}"
                )

    def close(self) -> None:
        if self._buffer is not None:
            self._buffer.close()
            self._buffer = None


def confirm(order: ShardOrder, checksums: Sequence[int]) -> None:
    """The rank's end: to be called when its device has finished copying."""
    words_W = map_buffer(order.receipt)[: 8 * (len(checksums) + 2)].view(torch.int64)
    signed = [value - 2 * _SIGNED if value >= _SIGNED else value for value in checksums]
    words_W[1:] = torch.tensor([*signed, order.version])
    words_W[0] = order.number + 1
