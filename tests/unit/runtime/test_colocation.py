"""The order in which memory changes hands, and what is said where it is not enough."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hybridflow.errors import PlacementError, WeightSyncError
from hybridflow.protocols import WeightSource
from hybridflow.runtime.colocation import PARTS, Colocation, check_gate
from hybridflow.types import MemoryTag, WorkerMemory
from hybridflow.weights.manifest import TensorEntry

MIB = 2**20
SIZES = {"weights": 10 * MIB, "gradients": 20 * MIB, "optimizer": 40 * MIB}
ENGINES = {"kv_cache": 300 * MIB, "weights": 12 * MIB}
ENTRY = TensorEntry("w", (1,), "float32", 1)


class Device:
    """One device of `total` bytes, an engine on it, and a trainer of which nothing is on the host."""

    def __init__(self, total: int, *, can_measure: bool = True) -> None:
        self.events: list[str] = []
        self.total = total
        self.trainer = dict(SIZES)
        self.engine = dict(ENGINES)
        self._can_measure = can_measure

    @property
    def free(self) -> int:
        return self.total - sum(self.trainer.values()) - sum(self.engine.values())

    # the trainer
    def memory(self) -> list[WorkerMemory]:
        away = {part: size for part, size in SIZES.items() if part not in self.trainer}
        return [
            WorkerMemory(
                worker="train worker 0", device="gpu", free_bytes=self.free, on_device=dict(self.trainer), on_host=away
            )
        ]

    def to_host(self, *parts: str) -> int:
        self.events.append(f"send {' '.join(parts)}")
        return sum(self.trainer.pop(part) for part in parts)

    def to_device(self, *parts: str) -> int:
        self.events.append(f"bring {' '.join(parts)}")
        self.trainer |= {part: SIZES[part] for part in parts}
        assert self.free >= 0, "an allocator would have failed"
        return sum(SIZES[part] for part in parts)

    def begin_weights(self, version: int) -> None:
        self.events.append(f"publish {version}")
        self.rounds = ["bucket"]

    def next_weights(self) -> str | None:
        assert "weights" in self.trainer
        return self.rounds.pop() if self.rounds else None

    def end_weights(self) -> list[TensorEntry]:
        assert "weights" in self.trainer and not self.rounds
        return [ENTRY]

    # the engines
    def release(self, tags: Sequence[MemoryTag]) -> int | None:
        self.events.append(f"release {' '.join(tags)}")
        freed = sum(self.engine.pop(tag, 0) for tag in tags)
        return freed if self._can_measure else None

    def resume(self, tags: Sequence[MemoryTag]) -> None:
        self.events.append(f"resume {' '.join(tags)}")
        self._take(*tags)

    def load_weights(self, source: WeightSource, version: int) -> None:
        self._take("weights")
        sync(source, version)

    def _take(self, *tags: str) -> None:
        self.engine |= {tag: ENGINES[tag] for tag in tags}
        assert self.free >= 0, "an allocator would have failed"


def sync(source: WeightSource, version: int, confirmed: TensorEntry = ENTRY) -> None:
    """An engine that loads what comes."""
    source.begin_sync(version)
    assert [source.next_round(), source.next_round()] == ["bucket", None]
    source.end_sync({"engine-0": [confirmed]})


def colocation(device: Device, *, releases: bool = True, offloads: bool = True) -> Colocation:
    return Colocation(device, device, releases=releases, offloads=offloads)


def test_a_step_on_a_device_that_holds_either_of_them_but_not_both() -> None:
    device = Device(total=sum(ENGINES.values()) + 70 * MIB)
    device.total = 320 * MIB
    over = released_before(device)
    for version in (0, 1):
        over.sync_weights(version)
        assert (device.trainer, device.engine) == ({}, ENGINES)
        over.to_trainer()
        assert (device.trainer, device.engine) == (SIZES, {})
    assert device.events == [
        *["send gradients optimizer", "publish 0", "send weights", "resume kv_cache"],
        *["release kv_cache", "release weights cuda_graph", "bring weights gradients optimizer"],
        *["send gradients optimizer", "publish 1", "send weights", "resume kv_cache"],
        *["release kv_cache", "release weights cuda_graph", "bring weights gradients optimizer"],
    ]


@pytest.mark.parametrize("can_measure", [True, False])
def test_what_moved_and_what_was_free_is_in_the_metrics(can_measure: bool) -> None:
    """An engine on CUDA does not know what it gave back: then the device is asked before and after."""
    over = colocation(Device(1000 * MIB, can_measure=can_measure), offloads=False)
    over.to_trainer()
    metrics = over.take_metrics()
    assert metrics["perf/released_mib/kv_cache"] == 300.0
    assert metrics["perf/released_mib/weights"] == 12.0
    assert metrics["perf/free_mib/after_release"] == 930.0
    over.sync_weights(1)
    assert over.take_metrics() == {
        "perf/free_mib/before_engines_take_their_weights_back": 930.0,
        "perf/free_mib/before_engines_take_their_KV_pool_back": 918.0,
    }


def test_where_nothing_is_shared_nothing_is_asked() -> None:
    device = Device(1000 * MIB)
    over = colocation(device, releases=False, offloads=False)
    over.to_trainer()
    over.sync_weights(3)
    with over.trainer_present():
        pass
    assert device.events == ["publish 3"] and over.take_metrics() == {} and not over.is_shared


def test_to_give_the_trainer_the_device_twice_is_to_give_it_once() -> None:
    device = Device(1000 * MIB)
    over = colocation(device)
    over.to_trainer()
    over.to_trainer()
    assert device.events == ["release kv_cache", "release weights cuda_graph"]


def test_a_checkpoint_takes_the_room_of_the_kv_pool() -> None:
    device = Device(1000 * MIB)
    over = colocation(device)
    over.sync_weights(0)
    device.events.clear()
    with over.trainer_present():
        assert device.trainer == SIZES and device.engine == {"weights": 12 * MIB}
    assert device.events == [
        *["release kv_cache", "bring weights gradients optimizer"],
        *["send weights gradients optimizer", "resume kv_cache"],
    ]


def test_a_checkpoint_while_the_trainer_has_the_device_changes_nothing() -> None:
    device = Device(1000 * MIB)
    over = colocation(device)
    over.to_trainer()
    device.events.clear()
    with over.trainer_present():
        pass
    assert device.events == []


def test_weights_come_back_for_an_engine_that_is_started_anew() -> None:
    device = Device(1000 * MIB)
    over = colocation(device)
    over.sync_weights(0)
    device.events.clear()
    sync(over, 0)
    assert device.events == ["bring weights", "publish 0", "send weights"]


def test_an_engine_that_confirms_something_else_is_named_by_the_tensor() -> None:
    over = colocation(Device(1000 * MIB))
    with pytest.raises(WeightSyncError, match=r"weights version 4: the engine confirms 1 tensors.*differing \['w'\]"):
        sync(over, 4, confirmed=TensorEntry("w", (1,), "float32", 2))


def test_what_does_not_fit_is_said_before_it_is_tried() -> None:
    device = Device(sum(ENGINES.values()) + sum(SIZES.values()))
    over = colocation(device, offloads=False)
    over.to_trainer()
    device.total -= 100 * MIB  # taken by somebody else meanwhile
    with pytest.raises(
        PlacementError,
        match=r"engines take their KV pool back on gpu: 300 MiB are wanted, 200 MiB are free\. Held there: train "
        r"worker 0 weights 10 MiB, .* engines weights 12 MiB\. Remedy: lower rollout.kv_cache_tokens",
    ):
        over.sync_weights(1)
    assert device.events[-1] == "publish 1"


def test_workers_of_one_device_share_what_is_free() -> None:
    both = [
        WorkerMemory(worker=f"train worker {rank}", device="a", free_bytes=100, on_device={}, on_host={"weights": 60})
        for rank in range(2)
    ]
    check_gate("x", {"a": 100}, both, {})
    with pytest.raises(PlacementError, match="x on a"):
        check_gate("x", {"a": 120}, both, {})
    check_gate("x", {"b": 120}, both, {})
    assert PARTS == ("weights", "gradients", "optimizer")


def released_before(device: Device) -> Colocation:
    """As engines are opened on CUDA: they have given all back, and SGLang said how much that was."""
    device.engine = {}
    return Colocation(device, device, releases=True, offloads=True, released=ENGINES)


def test_engines_that_were_released_before_the_trainer_came_take_their_memory_at_the_first_publish() -> None:
    device = Device(total=1000 * MIB)
    over = released_before(device)
    over.to_trainer()
    assert device.events == [], "they have given all back already"
    over.sync_weights(0)
    assert (device.trainer, device.engine) == ({}, ENGINES)
    over.to_trainer()
    assert device.events[-3:] == ["release kv_cache", "release weights cuda_graph", "bring weights gradients optimizer"]


@pytest.mark.parametrize(
    ("total_mib", "refused"),
    [
        (
            sum(SIZES.values()) // MIB - 60 + 11,
            r"engines take their weights back on gpu: 12 MiB are wanted, 11 MiB are",
        ),
        (
            311,
            r"engines take their KV pool back on gpu: 300 MiB are wanted, 299 MiB are free\. .*engines weights 12 MiB",
        ),
    ],
)
def test_the_first_publish_too_is_held_against_what_is_free(total_mib: int, refused: str) -> None:
    device = Device(total=1000 * MIB)
    over = released_before(device)
    device.total = total_mib * MIB
    with pytest.raises(PlacementError, match=refused):
        over.sync_weights(0)
