"""Slots on clusters of 3 and 4 nodes with 8 logical GPUs each: real Ray, whose bundles are in no order from 17 on."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray._raylet import AuthenticationTokenLoader  # pyright: ignore[reportAttributeAccessIssue]
from ray.cluster_utils import Cluster

from hybridflow.cluster.devices import DEVICE_ENVIRONMENT
from hybridflow.cluster.gpu_reservations import devices_of, reserve_gpus
from hybridflow.cluster.session import Slots
from hybridflow.trainer.actor import HEALTH, TrainWorker

pytestmark = [pytest.mark.stack_cpu, pytest.mark.full, pytest.mark.timeout(400)]

STORE_BYTES = 80 * 2**20


class RecordedWorker(TrainWorker):
    """Tells in which thread it was told of its device, and in which it computes."""

    def __init__(self, log_path: str) -> None:
        torch.cuda.set_device = lambda index: self.told.append((index, threading.get_ident()))
        torch.cuda.get_device_properties = lambda index: type("Properties", (), {"uuid": f"uuid-{index}"})
        self.told: list[tuple[Any, int]] = []
        super().__init__(0, 1, log_path)
        self.started = threading.get_ident()

    def setup_and_say(self) -> tuple[str | None, list[tuple[Any, int]], int, str | None]:
        from hybridflow.trainer import core

        core.TrainerCore = lambda **_: None  # pyright: ignore[reportAttributeAccessIssue]
        return self.setup(("meeting", 0)), self.told, self.started, os.environ.get("CUDA_VISIBLE_DEVICES")

    def thread(self) -> int:
        return threading.get_ident()


@pytest.fixture(params=[3, 4])
def slots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slots]:
    """All GPUs of a cluster that was started without the variable that keeps Ray from hiding GPUs.

    Its processes ask for a token, as those of a private session do: Ray keeps the mode of a process's first session,
    and an actor of a driver that asks for tokens never starts in a cluster that has none.
    """
    assert not DEVICE_ENVIRONMENT.keys() & os.environ.keys()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    AuthenticationTokenLoader.instance().reset_cache()
    cluster = Cluster()
    try:
        for _ in range(request.param):
            cluster.add_node(num_cpus=8, num_gpus=8, include_dashboard=False, object_store_memory=STORE_BYTES)
        ray.init(address=cluster.address, log_to_driver=False)
        yield Slots(8 * request.param)
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_every_eight_slots_are_the_eight_gpus_of_a_node(slots: Slots, tmp_path: Path) -> None:
    nodes = slots.nodes()
    assert [place.gpu for place in slots.places] == list(range(8)) * (slots.num_slots // 8)
    for first in range(0, slots.num_slots, 8):
        assert len(set(nodes[first : first + 8])) == 1
    assert len(set(nodes)) == slots.num_slots // 8 and not slots.on_one_node
    assert {place.store_bytes for place in slots.places} == {STORE_BYTES}
    assert not slots.has_cuda

    # What stands in a slot is where the slot says, and sees all GPUs of the node.
    last = slots.num_slots - 8
    reservations = reserve_gpus(slots, [last, last + 7], 0.1)
    assert ray.get([reservation.where.remote() for reservation in reservations]) == [
        (nodes[last], "0"),
        (nodes[last], "7"),
    ]
    options: dict[str, Any] = {
        "num_cpus": 0,
        "num_gpus": 0.1,
        "scheduling_strategy": slots.strategy(last + 5),
        "runtime_env": {"env_vars": DEVICE_ENVIRONMENT},
    }
    devices = ray.remote(devices_of).options(**options).remote("engine-0", reservations)
    assert ray.get(devices) == ["5", "0", "7"]

    remote = ray.remote(concurrency_groups={HEALTH: 1})(RecordedWorker)  # pyright: ignore[reportCallIssue]
    worker = remote.options(**options).remote(str(tmp_path / "log"))
    device, told, started, visible = ray.get(worker.setup_and_say.remote())
    thread = ray.get(worker.thread.remote())
    assert (device, told, visible) == ("uuid-5", [(5, thread)], None)
    assert thread != started
