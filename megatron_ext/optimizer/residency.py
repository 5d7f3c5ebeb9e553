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
from megatron_ext.optimizer.repairs import distributed_optimizers
from megatron_ext.platform.device import Device

platform.install()

from megatron.core.distributed import DistributedDataParallel  # noqa: E402
from megatron.core.optimizer import MegatronOptimizer  # noqa: E402

Part = Literal["weights", "gradients", "optimizer"]
PARTS: tuple[Part, ...] = get_args(Part)


class ResidencyError(RuntimeError):
    """Something is needed on the device that is on the host. The message names it and the remedy."""


@dataclass(frozen=True)
class Moved:
    """The bytes that one move moved on this rank."""

    freed_bytes: int
    """Memory of the device given back; negative when it was taken again."""
    copied_bytes: int
    """Less than freed where content was dropped or made new."""
    seconds: float


class Residency:
    """Where the memory of one rank's model and optimizer is. Nothing here is collective."""

    def __init__(self, chunks: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer, device: Device) -> None:
        """All of it must be on the device."""
        self._chunks = chunks
        self._optimizer = optimizer
        self._device = device
        self._away: dict[Part, list[torch.UntypedStorage]] = {}
        """Storages of the parts that are on the host, shrunk to nothing."""
        self._num_bytes: dict[Part, list[int]] = {}
        """Size of each of these when it is on the device."""
        self._host: dict[Part, list[Tensor]] = {}
        self._pinned: dict[Part, list[Tensor]] = {}

    def num_bytes(self, part: Part) -> int:
        """Size of a part on the device, when it is there."""
        if part in self._away:
            return sum(self._num_bytes[part])
        return sum(storage.nbytes() for storage in self._storages(part))

    def _storages(self, part: Part) -> list[torch.UntypedStorage]:
        """Storages of a part that is on the device, as they are now: a step or a load may have made new ones."""
        weights = _storages(parameter.data for chunk in self._chunks for parameter in chunk.parameters())
        if part == "weights":
            return list(weights.values())
        buffers = [buffer for chunk in self._chunks for buffer in [*chunk.buffers, *chunk.expert_parallel_buffers]]
        gradients = _storages(buffer.grad_data for buffer in buffers)
        if part == "gradients":
            return list(gradients.values())
        owned = {**weights, **gradients}
        state = _storages(_optimizer_tensors(self._optimizer))
        return [storage for pointer, storage in state.items() if pointer not in owned]

    def is_on_device(self, part: Part) -> bool:
        return part not in self._away

    def require(self, *parts: Part) -> None:
        """Raises ResidencyError if one of them is on the host: reading shrunken memory would crash the process."""
        missing = [part for part in parts if part in self._away]
        if missing:
            raise ResidencyError(f"{', '.join(missing)} on the host: call to_device({missing[0]!r}) before this")

    def to_host(self, *parts: Part) -> Moved:
        """Frees the device memory of these parts (default: all); those that are on the host already stay there."""
        started, freed, copied = time.perf_counter(), 0, 0
        leaving: dict[Part, list[torch.UntypedStorage]] = {
            part: self._storages(part) for part in parts or PARTS if part not in self._away
        }
        for part, storages in leaving.items():
            self._num_bytes[part] = [storage.nbytes() for storage in storages]
            if part != "gradients":
                self._host[part] = self._host_room(part)
                for storage, room in zip(storages, self._host[part], strict=True):
                    room.copy_(_bytes_of(storage), non_blocking=True)
                    copied += room.numel()
        self._device.synchronize()
        for part, storages in leaving.items():
            for storage in storages:
                storage.resize_(0)
            freed += sum(self._num_bytes[part])
            self._away[part] = storages
        self._device.return_cached_memory()
        return Moved(freed, copied, time.perf_counter() - started)

    def to_device(self, *parts: Part) -> Moved:
        """Takes device memory again and fills it as it was; gradients are zero."""
        started, taken, copied = time.perf_counter(), 0, 0
        rooms: list[list[Tensor]] = []
        for part in parts or PARTS:
            if part not in self._away:
                continue
            room_of_storages = self._host.pop(part, [])
            rooms.append(room_of_storages)  # held until the copies are done
            for index, storage in enumerate(self._away.pop(part)):
                storage.resize_(self._num_bytes[part][index])
                if part == "gradients":
                    _bytes_of(storage).zero_()
                else:
                    _bytes_of(storage).copy_(room_of_storages[index], non_blocking=True)
                    copied += storage.nbytes()
                taken += storage.nbytes()
        self._device.synchronize()
        return Moved(-taken, copied, time.perf_counter() - started)

    def _host_room(self, part: Part) -> list[Tensor]:
        """Bytes on the host for each storage. With CUDA they are pinned and kept: pinning takes longer than copying."""
        sizes = self._num_bytes[part]
        if not self._device.has_cuda:
            return [torch.empty(size, dtype=torch.uint8) for size in sizes]
        if [room.numel() for room in self._pinned.get(part, [])] != sizes:
            self._pinned[part] = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in sizes]
        return self._pinned[part]


class ActivationOffload:
    """Keeps on the host what a forward pass saves for backward. Untested on CUDA.

    Megatron-Core 0.16.1's own offload needs Transformer Engine and refuses pipeline parallelism and recompute; this
    works with any layer, through autograd's hooks, without overlapping copies with computation.
    """

    def __init__(self, parameters: Iterable[Tensor], min_bytes: int = 2**20) -> None:
        """Parameters are not moved, nor what is smaller than `min_bytes`: it costs more time than it frees."""
        self._parameters = list(parameters)
        self._weights: set[int] = set()
        self._min_bytes = min_bytes
        self.moved_bytes = 0
        """Sum over all saved tensors so far."""

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside, forward passes save to the host; their backward may run inside or later."""
        # Each time: after a stay on the host the parameters are at other addresses.
        self._weights = {parameter.untyped_storage().data_ptr() for parameter in self._parameters}
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
