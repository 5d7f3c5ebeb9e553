"""The same rounds into several engines, some of which are gone before the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from hybridflow.errors import WeightSyncError
from hybridflow.observability.reporter import Notes
from hybridflow.rollout.driver.engine_handle import EngineDiedError
from hybridflow.rollout.driver.weight_sync import SyncResult, WeightSync
from hybridflow.weights.broadcast import Broadcast, BroadcastGroup
from hybridflow.weights.manifest import TensorEntry


@dataclass
class FakeHandle:
    """Confirms the buckets it was given; dies at its first call of `dies_at`."""

    name: str
    dies_at: str = ""
    version: int | None = None
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    awaited: list[str] = field(default_factory=list)

    @property
    def worker(self) -> FakeHandle:
        return self

    def call(self, method: str, *args: Any) -> str:
        self.calls.append((method, *args))
        return method

    def result(self, call: str) -> Any:
        self.awaited.append(call)
        if call == self.dies_at:
            raise EngineDiedError("is gone")
        if call == "begin_weights":
            self.version = self.calls[0][1]
        return (self.version, [TensorEntry("w", (1,), "float32", 7)]) if call == "end_weights" else None

    @property
    def buckets(self) -> list[Any]:
        return [args[0] for method, *args in self.calls if method == "load_bucket"]


@dataclass
class FakeSource:
    """Hands out these rounds."""

    rounds: Iterator[Any]
    events: list[Any] = field(default_factory=list)

    def begin_sync(self, version: int) -> None:
        self.events.append(("begin", version))

    def next_round(self) -> Any | None:
        return next(self.rounds, None)

    def end_sync(self, confirmed: Mapping[str, list[TensorEntry]]) -> None:
        self.events.append(("end", list(confirmed)))


def sync(*handles: FakeHandle) -> WeightSync:
    return WeightSync(list(handles), 3, Notes())  # pyright: ignore[reportArgumentType]


def run(ours: WeightSync, *rounds: Any) -> SyncResult:
    return ours.run(FakeSource(iter(rounds)))


def test_every_engine_gets_every_bucket_once() -> None:
    members = [FakeHandle("engine-0"), FakeHandle("engine-1")]
    source = FakeSource(iter(["b0", "b1", "b2"]))
    result = sync(*members).run(source)
    assert all(member.buckets == ["b0", "b1", "b2"] for member in members)
    assert result.confirmed.keys() == {"engine-0", "engine-1"}
    assert result.died == {}
    assert source.events == [("begin", 3), ("end", ["engine-0", "engine-1"])]


@pytest.mark.parametrize("method", ["begin_weights", "load_bucket", "end_weights"])
def test_an_engine_that_dies_drops_out_and_the_other_confirms(method: str) -> None:
    other = FakeHandle("engine-1")
    result = run(sync(FakeHandle("engine-0", dies_at=method), other), "b0", "b1", "b2")
    assert result.died == {"engine-0": "is gone"}
    assert result.confirmed.keys() == {"engine-1"}
    assert other.buckets == ["b0", "b1", "b2"]


def test_a_group_of_the_sender_alone_is_joined_by_nobody() -> None:
    ours = sync(FakeHandle("engine-0", dies_at="begin_weights"))
    group = BroadcastGroup(name="g", address="a", port=1, world_size=1, backend="gloo")
    assert run(ours, group, Broadcast(version=3, group="g", entries=[])).confirmed == {}


def test_another_version_than_sent_is_an_error() -> None:
    class Stale(FakeHandle):
        def result(self, call: str) -> Any:
            return (2, []) if call == "end_weights" else None

    with pytest.raises(WeightSyncError, match="engine-0 confirms weights version 2, 3 was sent"):
        run(sync(Stale("engine-0")), "b0")


def test_ranks_of_all_engines_join_behind_the_sender_and_receive_one_broadcast_after_the_other() -> None:
    """The group is made for those that are left once the session is open."""
    gone, *members = FakeHandle("engine-0", dies_at="begin_weights"), FakeHandle("engine-1"), FakeHandle("engine-2")
    ours = sync(gone, *members)
    done: list[int] = []

    def announce() -> Iterator[BroadcastGroup | Broadcast]:
        size = 1 + 2 * ours.num_alive
        yield BroadcastGroup(name="g", address="a", port=1, world_size=size, backend="gloo")
        for number in range(3):
            done.append(len(members[0].awaited))
            yield Broadcast(version=number, group="g", entries=[])

    ours.run(FakeSource(announce()))
    joined = {member.name: call for member in members for call in member.calls if call[0] == "join_group"}
    assert {name: offset for name, (_, _, offset) in joined.items()} == {"engine-1": 1, "engine-2": 3}
    assert joined["engine-1"][1].world_size == 5
    assert done == [2, 3, 4], "a broadcast was announced before the last had been received"
    assert [bucket.version for bucket in members[1].buckets] == [0, 1, 2]
