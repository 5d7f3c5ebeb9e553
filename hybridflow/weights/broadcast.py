"""Whole tensors from a train worker to engines on devices of their own, over a separate process group.

Rank 0 of the group is the train worker, the others are ranks of engines (SGLang's `init_weights_update_group`); NCCL
from GPU to GPU, gloo on a CPU. The worker describes a bucket, then broadcasts its tensors one by one; every rank of
every engine receives them whole and cuts its part (`update_weights_from_distributed`). Nothing but the description
passes through the driver. With pipeline stages each has a sender and a group of its own, one after the other.
"""

from __future__ import annotations

import ctypes
import datetime
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d
from torch.distributed.distributed_c10d import GroupName

from hybridflow.weights.manifest import TensorEntry
from megatron_ext.parallel.meeting import open_store


class BroadcastGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Process group of a broadcast: how its members find each other."""

    name: str
    address: str
    port: int
    world_size: int
    """One sender, and all ranks of all engines."""
    backend: str
    timeout_s: float = 300.0
    """How long a member waits for the others before it fails."""


class Broadcast(msgspec.Struct, frozen=True, kw_only=True):
    """Tensors that follow over the group, in this order, under Hugging Face names."""

    version: int
    group: str
    entries: list[TensorEntry]
    read_back: dict[str, str] = {}
    """By name: the checksum that SGLang will report where it keeps the tensor as it is; empty where none is known."""


def read_back_checksum(tensor: Tensor) -> str:
    """SGLang's checksum of a parameter with the bytes of this contiguous CPU tensor: the first 8 bytes of their
    SHA-256 (0.5.23, managers/mm_utils.py, tensor_hash)."""
    flat = tensor.reshape(-1).view(torch.uint8)
    return hashlib.sha256((ctypes.c_char * flat.numel()).from_address(flat.data_ptr())).digest()[:8].hex()


class Broadcaster:
    """The sender's end. Blocks until all engines have joined."""

    def __init__(self, group: BroadcastGroup) -> None:
        """A group beside the default one, with members that are not in that: after SGLang's init_custom_process_group
        (0.5.23, srt/utils/common.py), which has to be met as it is."""
        timeout = datetime.timedelta(seconds=group.timeout_s)
        store = open_store(group.address, group.port, 0, group.world_size, group.timeout_s)
        with _without_split():
            made, _ = c10d._new_process_group_helper(
                group.world_size,
                0,
                [],
                dist.Backend(group.backend),
                dist.PrefixStore(group.name, store),
                group_name=GroupName(group.name),
                timeout=timeout,
            )
        assert isinstance(made, dist.ProcessGroup)
        c10d._world.pg_group_ranks[made] = {rank: rank for rank in range(group.world_size)}
        self._group = made

    def send(self, tensors: Iterable[Tensor]) -> None:
        """In the order of the `Broadcast` that announced them; returns when all engines have them."""
        works = [dist.broadcast(tensor, src=0, group=self._group, async_op=True) for tensor in tensors]
        for work in works:
            assert work is not None
            work.wait()

    def close(self) -> None:
        """Every member of the group leaves it."""
        dist.destroy_process_group(self._group)


@contextmanager
def _without_split() -> Iterator[None]:
    """Inside, torch makes groups again: out of a default group that is bound to a GPU it would split them, and so wait
    for the ranks of that one instead of the engines."""
    default = dist.GroupMember.WORLD
    bound = default.bound_device_id if default is not None else None
    if default is None or bound is None:
        yield
        return
    default.bound_device_id = None  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        default.bound_device_id = bound
