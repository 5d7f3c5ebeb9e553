"""A rank computes on the GPU of its slot: CUDA's device belongs to a thread, and Ray runs methods in another one than
`__init__` where an actor has concurrency groups."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist

from hybridflow.trainer import actor, core
from megatron_ext.parallel import topology
from megatron_ext.parallel.layout import Layout


class Recorded:
    """torch.cuda with GPUs 0 and 1, and what it was told in which thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, int, int]] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "set_device", lambda index: self.note("set_device", index))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"uuid-{index}"))

    def note(self, what: str, device: int = -1) -> None:
        self.events.append((what, device, threading.get_ident()))


def test_the_device_is_set_first_and_in_the_thread_of_the_methods(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recorded = Recorded(monkeypatch)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: ["5"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.setattr(actor, "redirect_output", lambda path: None)
    monkeypatch.setattr(actor, "configure", lambda name, rank: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(core, "TrainerCore", lambda **_: recorded.note("core"))
    worker = actor.TrainWorker(0, 1, str(tmp_path / "log"))
    with ThreadPoolExecutor(max_workers=1) as methods:
        thread = methods.submit(threading.get_ident).result()
        assert methods.submit(worker.setup, ("meeting", 0)).result() == "uuid-1"
    assert recorded.events == [("set_device", 1, thread), ("core", -1, thread)]
    assert thread != threading.get_ident()


@pytest.mark.parametrize(("has_cuda", "device"), [(True, torch.device("cuda", 1)), (False, None)])
def test_the_process_group_is_told_its_device(
    has_cuda: bool, device: torch.device | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class JoinedError(Exception):
        pass

    def join(_: str, **given: Any) -> None:
        raise JoinedError(given["device_id"])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(topology, "open_store", lambda *_: None)
    monkeypatch.setattr(dist, "init_process_group", join)
    with pytest.raises(JoinedError) as joined:
        topology.init_distributed(0, 1, "meeting", 0, Layout(), seed=0)
    assert joined.value.args == (device,)
