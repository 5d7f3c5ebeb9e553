"""Moves weights, gradients and optimizer state between the device and the host, and activations during a step.

Trainer and engine share a device in time, so what the trainer does not need in a phase has to leave it. Memory is moved
by storage: each storage is copied to the host and shrunk to nothing, then grown and filled again. Every tensor stays
the view it was, so Megatron's buffers, parameters and optimizer notice nothing. On a CPU the same happens between two
places of the host's memory, without pinning.

    weights      parameters, and Megatron's buffer that they are views of
    gradients    the gradient buffers; every step begins by zeroing them, so they are dropped and come back as zeros
    optimizer    moments, and master weights where they are not the weights themselves (as they are in float32)
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from megatron_ext import platform
from megatron_ext.optimizer_repairs import distributed_optimizers

platform.install()

from megatron.core.distributed import DistributedDataParallel  # noqa: E402
from megatron.core.optimizer import MegatronOptimizer  # noqa: E402

Part = Literal["weights", "gradients", "optimizer"]
PARTS: tuple[Part, ...] = get_args(Part)


class ResidencyError(RuntimeError):
    """Something is needed on the device that is on the host. The message names it and the remedy."""


@dataclass(frozen=True)
class Moved:
    """What one move did on this rank."""

    freed_bytes: int
    """Memory of the device given back; negative when it was taken again."""
    copied_bytes: int
    """Less than freed where content was dropped or made new."""
    seconds: float


class Residency:
    """Where the memory of one rank's model and optimizer is. Nothing here is collective."""

    def __init__(self, chunks: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer) -> None:
        """All of it must be on the device, and stay the same tensors from now on."""
        weights = _storages(parameter.data for chunk in chunks for parameter in chunk.parameters())
        buffers = [buffer for chunk in chunks for buffer in [*chunk.buffers, *chunk.expert_parallel_buffers]]
        gradients = _storages(buffer.grad_data for buffer in buffers)
        owned = {**weights, **gradients}
        state = _storages(_optimizer_tensors(optimizer))
        self._storages: dict[Part, list[torch.UntypedStorage]] = {
            "weights": list(weights.values()),
            "gradients": list(gradients.values()),
            "optimizer": [storage for pointer, storage in state.items() if pointer not in owned],
        }
        self._num_bytes = {part: [s.nbytes() for s in storages] for part, storages in self._storages.items()}
        self._host: dict[Part, list[Tensor] | None] = dict.fromkeys(PARTS)
        self._pinned: dict[Part, list[Tensor]] = {}
        self._on_host: set[Part] = set()

    def num_bytes(self, part: Part) -> int:
        """Size of a part on the device, when it is there."""
        return sum(self._num_bytes[part])

    def is_on_device(self, part: Part) -> bool:
        return part not in self._on_host

    def require(self, *parts: Part) -> None:
        """Raises ResidencyError if one of them is on the host: reading shrunken memory would crash the process."""
        missing = [part for part in parts if part in self._on_host]
        if missing:
            raise ResidencyError(f"{', '.join(missing)} on the host: call to_device({missing[0]!r}) before this")

    def to_host(self, *parts: Part) -> Moved:
        """Frees the device memory of these parts (default: all); those that are on the host already stay there."""
        started, freed, copied = time.perf_counter(), 0, 0
        leaving: list[Part] = [part for part in parts or PARTS if part not in self._on_host]
        for part in leaving:
            if part != "gradients":
                self._host[part] = self._host_room(part)
                for storage, room in zip(self._storages[part], self._host[part] or [], strict=True):
                    room.copy_(_bytes_of(storage), non_blocking=True)
                    copied += room.numel()
        _wait()
        for part in leaving:
            for storage in self._storages[part]:
                storage.resize_(0)
            freed += self.num_bytes(part)
            self._on_host.add(part)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return Moved(freed, copied, time.perf_counter() - started)

    def to_device(self, *parts: Part) -> Moved:
        """Takes device memory again and fills it as it was; gradients are zero."""
        started, taken, copied = time.perf_counter(), 0, 0
        returning: list[Part] = [part for part in parts or PARTS if part in self._on_host]
        for part in returning:
            for index, storage in enumerate(self._storages[part]):
                storage.resize_(self._num_bytes[part][index])
                room = (self._host[part] or [])[index] if part != "gradients" else None
                if room is None:
                    _bytes_of(storage).zero_()
                else:
                    _bytes_of(storage).copy_(room, non_blocking=True)
                    copied += room.numel()
            taken += self.num_bytes(part)
            self._on_host.discard(part)
        _wait()
        self._host = {part: self._host[part] if part in self._on_host else None for part in PARTS}
        return Moved(-taken, copied, time.perf_counter() - started)

    def _host_room(self, part: Part) -> list[Tensor]:
        """Bytes on the host for each storage. With CUDA they are pinned and kept: pinning takes longer than copying."""
        if not torch.cuda.is_available():
            return [torch.empty(size, dtype=torch.uint8) for size in self._num_bytes[part]]
        if part not in self._pinned:
            self._pinned[part] = [
                torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in self._num_bytes[part]
            ]
        return self._pinned[part]


class ActivationOffload:
    """Keeps on the host what a forward pass saves for backward. Untested on CUDA.

    Megatron-Core 0.16.1's own offload needs Transformer Engine and refuses pipeline parallelism and recompute; this
    works with any layer, through autograd's hooks, without overlapping copies with computation.
    """

    def __init__(self, parameters: Iterable[Tensor], min_bytes: int = 2**20) -> None:
        """Parameters are not moved, nor what is smaller than `min_bytes`: it costs more time than it frees."""
        self._weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self._min_bytes = min_bytes
        self.moved_bytes = 0
        """Sum over all saved tensors so far."""

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside, forward passes save to the host; their backward may run inside or later."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            yield

    def _pack(self, tensor: Tensor) -> Any:
        if tensor.nbytes < self._min_bytes or tensor.untyped_storage().data_ptr() in self._weights:
            return tensor
        self.moved_bytes += tensor.nbytes
        on_host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        on_host.copy_(tensor.detach(), non_blocking=False)
        return tensor.device, on_host

    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, on_host = packed
        return on_host.to(device, non_blocking=True)


def _optimizer_tensors(optimizer: MegatronOptimizer) -> Iterator[Tensor]:
    for member in distributed_optimizers(optimizer):
        for group in member.optimizer.param_groups:
            for main_param in group["params"]:
                yield main_param.data
        for state in member.optimizer.state.values():
            for name, value in state.items():
                if torch.is_tensor(value) and name != "step":  # a CPU scalar, whatever the device
                    yield value


def _storages(tensors: Iterable[Tensor]) -> dict[int, torch.UntypedStorage]:
    """The distinct storages of these tensors by address."""
    found = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage for storage in found if storage.nbytes()}


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
