"""Which GPU is whose, in Ray's words and in CUDA's."""

from __future__ import annotations

import os
import socket

import psutil
import pytest
import ray
import torch

from hybridflow.cluster.devices import (
    DEVICE_ENVIRONMENT,
    check_engine_devices,
    device_index,
    device_name,
    free_bytes,
    refuse_doubles,
    show_own_instance,
    this_device,
)
from hybridflow.config.rollout_section import RolloutSection
from hybridflow.errors import PlacementError
from hybridflow.rollout.engine.arguments import engine_environment
from hybridflow.trainer.actor import worker_environment

UUIDS = "GPU-aa,GPU-bb,GPU-cc"


@pytest.mark.parametrize(
    ("name", "visible", "index"),
    [
        ("3", None, 3),
        ("5", "4,5", 1),
        ("4", "4,5", 0),
        ("0", "3,2,1,0", 3),
        ("6", " 7, 6 ", 1),
        ("GPU-cc", UUIDS, 2),
        ("MIG-1/2", "MIG-1/1,MIG-1/2", 1),
        ("7", "7", 0),  # where Ray itself left this one alone visible
    ],
)
def test_cuda_counts_what_is_visible(name: str, visible: str | None, index: int) -> None:
    assert device_index(name, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == index


@pytest.mark.parametrize(("name", "visible"), [("2", "4,5"), ("GPU-dd", UUIDS), ("0", ""), ("GPU-aa", None)])
def test_a_gpu_that_is_not_visible_is_named(name: str, visible: str | None) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    with pytest.raises(PlacementError, match=rf"GPU {name} of this actor's slot is not among CUDA_VISIBLE_DEVICES = "):
        device_index(name, environment)


@pytest.mark.parametrize(
    ("given", "name"), [([], None), ([3], "3"), (["5"], "5"), ([" GPU-bb"], "GPU-bb"), (["MIG-1/2"], "MIG-1/2")]
)
def test_the_name_is_rays(given: list[object], name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: given)
    assert this_device() == name


def test_more_gpus_told_than_visible_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray then names all that are visible for each."""
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: ["5", "4"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(PlacementError, match=r"the GPUs 4, 5 and not one: .*CUDA_VISIBLE_DEVICES = 4,5 shows"):
        this_device()


@pytest.mark.parametrize(("given", "visible"), [(["MIG-b"], "MIG-b"), (["GPU-b"], "GPU-a,GPU-b"), (["5"], "4,5")])
def test_of_mig_instances_only_the_own_one_is_left(
    given: list[str], visible: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: given)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", {"MIG-b": "MIG-a,MIG-b"}.get(visible, visible))
    show_own_instance()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_two_workers_on_one_gpu_are_refused() -> None:
    names = [f"train worker {rank}" for rank in range(4)]
    refuse_doubles(names, [None] * 4)
    refuse_doubles(names, ["a", "b", "c", "d"])
    with pytest.raises(PlacementError, match="train worker 1 and train worker 3 are on the same GPU, b: "):
        refuse_doubles(names, ["a", "b", "c", "b"])


def test_ranks_of_an_engine_need_gpus_that_reach_each_other() -> None:
    for names in (["MIG-1"], ["4", "5"], ["GPU-a", "GPU-b"]):
        check_engine_devices("engine-0", names)
    with pytest.raises(PlacementError, match="engine-1: two of its ranks are on one GPU: 4, 4"):
        check_engine_devices("engine-1", ["4", "4"])
    with pytest.raises(PlacementError, match=r"engine-1: .*MIG instances \(MIG-1, MIG-2\).*rollout\.tp_size = 1"):
        check_engine_devices("engine-1", ["MIG-1", "MIG-2"])


def test_ray_leaves_what_is_visible_alone_also_on_a_cluster_that_runs_already() -> None:
    """There actors have the environment of the cluster, and of their runtime_env, not the driver's."""
    for environment in (worker_environment(1), engine_environment(RolloutSection(), 0)):
        assert environment.items() >= DEVICE_ENVIRONMENT.items()
    assert DEVICE_ENVIRONMENT["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"] == "1"


def test_free_memory_is_of_the_gpu_or_else_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 + device.index, 9000))
    monkeypatch.setattr(socket, "gethostname", lambda: "node-a")
    gpu, cpu = torch.device("cuda", 3), torch.device("cpu")
    assert (device_name(gpu), free_bytes(gpu)) == ("node-a GPU 3", 1003)
    assert device_name(cpu) == "node-a" and 0 < free_bytes(cpu) <= psutil.virtual_memory().total
