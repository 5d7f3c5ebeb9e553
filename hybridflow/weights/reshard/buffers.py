"""Buffers in which train workers hand weights to the engines of their machine: shared memory, or CUDA IPC on one GPU.

Shared memory is an anonymous memory file (memfd), where a rank assembles what its engine's rank loads: other processes
open it through /proc/<pid>/fd, and the memory is gone with the last process that maps it, however that one ends.
Nothing has a name that could be left behind. On a CPU this is the whole way: sources write into the destination's
buffer, SGLang copies out of it.

On one GPU SGLang's rank opens the train worker's bucket itself. Not run yet: needs CUDA. The payload holds CUDA IPC
handles, not bytes; it passes through driver and tokenizer manager as it is. It is made again for each round, as torch
counts who has opened it. SGLang's own serialiser is used, so that the reader is met as it is.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from hybridflow.errors import WeightSyncError

Named = list[tuple[str, Tensor]]


class DeviceBuffer:
    """`num_bytes` on this process's GPU."""

    handle = None
    """No other process opens the whole of it."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self.bytes_B = torch.empty(max(num_bytes, 1), dtype=torch.uint8, device=device)

    def close(self) -> None:
        """The memory goes back once SGLang has let go of it too."""
        del self.bytes_B
        torch.cuda.ipc_collect()


def ipc_payload(bytes_B: Tensor) -> bytes:
    """The bytes of a round, as SGLang's rank on this GPU opens them."""
    from sglang.srt.utils import MultiprocessingSerializer
    from sglang.srt.utils.patch_torch import monkey_patch_torch_reductions

    monkey_patch_torch_reductions()  # names the GPU by its UUID: the engine's processes number GPUs otherwise
    return MultiprocessingSerializer.serialize(bytes_B)


def sglang_checksums(named: Named) -> dict[str, str]:
    """As SGLang's `check_weights` computes them on this kind of device."""
    from sglang.srt.managers.mm_utils import tensor_hash

    return {name: f"{tensor_hash(tensor):016x}" for name, tensor in named}


class BufferHandle(msgspec.Struct, frozen=True):
    """How another process of the same machine opens a buffer."""

    machine: str
    pid: int
    fd: int
    num_bytes: int


class SharedBuffer:
    """`num_bytes` of shared memory that this process owns; pages take memory when they are first written."""

    def __init__(self, num_bytes: int) -> None:
        fd = os.memfd_create("hybridflow-weights", os.MFD_CLOEXEC)
        os.ftruncate(fd, max(num_bytes, 1))
        self.handle = BufferHandle(this_machine(), os.getpid(), fd, max(num_bytes, 1))
        self.bytes_B = map_buffer(self.handle)

    def close(self) -> None:
        """The memory goes back once other processes have let go of it too."""
        del self.bytes_B
        os.close(self.handle.fd)


def map_buffer(handle: BufferHandle) -> Tensor:
    """The buffer's bytes, uint8 [num_bytes], shared with its owner, and by torch's means with further processes.

    Raises WeightSyncError if the owner is gone, or is on another machine.
    """
    if handle.machine != this_machine():
        raise WeightSyncError(
            f"a bucket of weights lies in the memory of process {handle.pid} of another machine; the engine has to run "
            "beside its train worker: start fewer engines, or set rollout.weight_transport = 'hf_buckets'"
        )
    try:
        fd = os.open(f"/proc/{handle.pid}/fd/{handle.fd}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise WeightSyncError(
            f"cannot open the weights of process {handle.pid}: {error}. It has ended, or belongs to another user"
        ) from error
    try:
        storage = torch.UntypedStorage._new_shared_fd_cpu(fd, handle.num_bytes)  # pyright: ignore[reportAttributeAccessIssue]
    finally:
        os.close(fd)  # torch keeps one of its own
    return torch.empty(0, dtype=torch.uint8).set_(storage)  # pyright: ignore[reportArgumentType]


@functools.cache
def this_machine() -> str:
    """Equal for two processes that can see each other under /proc."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
