"""The `torch` module that `megatron.core` sees on a machine without CUDA.

Everything is forwarded to the real torch except `torch.cuda`, which answers for a CPU, and the tensor factories, which
take device="cuda" (or the index that `current_device` would give) for the CPU. The real torch is left alone.

Tests of what upstream does without it, and of names that it no longer asks for, are in tests/dist_cpu/test_patches.py:
test_upstream_needs_the_stand_in_for_torch and test_upstream_asks_for_every_name_of_the_stand_in.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import types
from collections.abc import Callable
from typing import Any

import torch

CPU = torch.device("cpu")

FACTORIES = (
    "arange",
    "as_tensor",
    "empty",
    "empty_like",
    "full",
    "full_like",
    "ones",
    "ones_like",
    "rand",
    "randn",
    "tensor",
    "zeros",
    "zeros_like",
)
"""Torch functions that Megatron calls with an explicit CUDA device."""


class CpuStream:
    """A stream on a device that runs everything in order: waiting and recording mean nothing."""

    cuda_stream = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, stream: CpuStream) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, event: CpuEvent | None = None) -> CpuEvent:
        return event or CpuEvent()


class CpuEvent:
    """An event on such a stream: always done."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record(self, stream: CpuStream | None = None) -> None: ...

    def wait(self, stream: CpuStream | None = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class CpuCuda(types.ModuleType):
    """`torch.cuda` as Megatron uses it, for a machine that has none. Other names fall through to the real module."""

    Stream = CpuStream
    Event = CpuEvent

    def __init__(self) -> None:
        super().__init__("torch.cuda")
        do_nothing = lambda *args, **kwargs: None  # noqa: E731
        self.synchronize = self.set_device = self.empty_cache = do_nothing
        self.nvtx = types.SimpleNamespace(range_push=do_nothing, range_pop=do_nothing)
        self.stream = lambda *args: contextlib.nullcontext()
        self.current_stream = self.default_stream = lambda *args: CpuStream()

    def is_available(self) -> bool:
        return False

    def current_device(self) -> torch.device:
        """A device rather than an index: Megatron only ever passes it on as `device=`."""
        return CPU

    def device_count(self) -> int:
        return 0

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, new_state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(new_state)

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def memory_allocated(self, *args: Any) -> int:
        return 0

    def memory_stats(self, *args: Any) -> dict[str, int]:
        return collections.defaultdict(int)

    def get_device_properties(self, *args: Any) -> types.SimpleNamespace:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return types.SimpleNamespace(name="cpu", major=0, minor=0, multi_processor_count=1, total_memory=memory)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)


class TorchStandIn(types.ModuleType):
    """The real torch, with `cuda` and the tensor factories replaced."""

    def __init__(self) -> None:
        super().__init__("torch")
        self.cuda = CpuCuda()
        self.__path__ = torch.__path__
        for name in FACTORIES:
            setattr(self, name, _on_cpu(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs:
            kwargs["device"] = _cpu_device(kwargs["device"])
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False  # pinning needs a CUDA driver
        return factory(*args, **kwargs)

    return make


def _cpu_device(device: Any) -> Any:
    """CPU for any spelling of a CUDA device, else the device itself."""
    if isinstance(device, torch.device):
        return CPU if device.type == "cuda" else device
    if isinstance(device, int) or (isinstance(device, str) and device.startswith("cuda")):
        return CPU
    return device


TORCH_STAND_IN = TorchStandIn()
