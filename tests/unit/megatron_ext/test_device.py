"""The device that a process computes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_ext.platform.device import CPU, Device, find_device


@pytest.mark.parametrize("has_cuda", [True, False])
def test_torch_is_asked(has_cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert find_device() == Device(has_cuda)


def test_with_cuda_it_is_the_gpu_of_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def note(name: str) -> Any:
        return lambda: asked.append(name)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "synchronize", note("synchronize"))
    monkeypatch.setattr(torch.cuda, "empty_cache", note("empty_cache"))
    device = Device(has_cuda=True)
    device.synchronize()
    device.return_cached_memory()
    assert (device.current, device.backend, asked) == (torch.device("cuda", 3), "nccl", ["synchronize", "empty_cache"])


def test_a_cpu_is_never_asked_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("current_device", "synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: pytest.fail("CUDA was used"))
    CPU.synchronize()
    CPU.return_cached_memory()
    assert (CPU.current, CPU.backend) == (torch.device("cpu"), "gloo")
