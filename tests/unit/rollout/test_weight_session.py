"""The same buckets into several engines, some of which are gone before the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from hybridflow.errors import WeightSyncError
from hybridflow.rollout.member import EngineDiedError
from hybridflow.rollout.weight_session import WeightSession
from hybridflow.weights.manifest import TensorEntry


@dataclass
class FakeMember:
    """Confirms the buckets it was given; dies at its first call of `dies_at`."""

    name: str
    dies_at: str = ""
    version: int | None = None
    calls: list[tuple[str, Any]] = field(default_factory=list)

    @property
    def worker(self) -> FakeMember:
        return self

    def call(self, method: str, *args: Any) -> str:
        self.calls.append((method, *args))
        return method

    def result(self, call: str) -> Any:
        if call == self.dies_at:
            raise EngineDiedError("is gone")
        if call == "begin_weights":
            self.version = self.calls[0][1]
        return (self.version, [TensorEntry("w", (1,), "float32", 7)]) if call == "end_weights" else None

    @property
    def buckets(self) -> list[Any]:
        return [args[0] for method, *args in self.calls if method == "load_bucket"]


def session(*members: FakeMember) -> WeightSession:
    return WeightSession(list(members), 3, lambda text: None)  # pyright: ignore[reportArgumentType]


def test_every_engine_gets_every_bucket_once() -> None:
    members = [FakeMember("engine-0"), FakeMember("engine-1")]
    result = session(*members).load(["b0", "b1", "b2"])
    assert all(member.buckets == ["b0", "b1", "b2"] for member in members)
    assert result.confirmed.keys() == {"engine-0", "engine-1"}
    assert result.died == {}


@pytest.mark.parametrize("method", ["begin_weights", "load_bucket", "end_weights"])
def test_an_engine_that_dies_drops_out_and_the_other_confirms(method: str) -> None:
    other = FakeMember("engine-1")
    result = session(FakeMember("engine-0", dies_at=method), other).load(["b0", "b1", "b2"])
    assert result.died == {"engine-0": "is gone"}
    assert result.confirmed.keys() == {"engine-1"}
    assert other.buckets == ["b0", "b1", "b2"]


def test_another_version_than_sent_is_an_error() -> None:
    class Stale(FakeMember):
        def result(self, call: str) -> Any:
            return (2, []) if call == "end_weights" else None

    with pytest.raises(WeightSyncError, match="engine-0 confirms weights version 2, 3 was sent"):
        session(Stale("engine-0")).load(["b0"])
