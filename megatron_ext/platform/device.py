"""The device that a process computes on. The one place that asks torch whether there is CUDA; others are told.

Each process asks for itself, once, where it begins: a driver knows nothing of the machines of its workers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """The GPUs that this process sees, or the CPU."""

    has_cuda: bool

    @property
    def current(self) -> torch.device:
        """The device that the calling thread computes on."""
        return torch.device("cuda", torch.cuda.current_device()) if self.has_cuda else torch.device("cpu")

    @property
    def backend(self) -> str:
        """The library of torch.distributed by which processes exchange what lies there."""
        return "nccl" if self.has_cuda else "gloo"

    def synchronize(self) -> None:
        """Returns when what was started there is done."""
        if self.has_cuda:
            torch.cuda.synchronize()

    def return_cached_memory(self) -> None:
        """Gives back what torch keeps of freed memory, so that other processes can have it."""
        if self.has_cuda:
            torch.cuda.empty_cache()


CPU = Device(has_cuda=False)


def find_device() -> Device:
    """Asks torch."""
    return Device(torch.cuda.is_available())
