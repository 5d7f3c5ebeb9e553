"""An engine that has not confirmed the weights serves nothing; it takes part again once it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hybridflow.config.rollout_section import RolloutSection
from hybridflow.observability.reporter import Notes
from hybridflow.rollout.driver.engine_group import EngineGroup
from hybridflow.rollout.driver.engine_handle import EngineDiedError
from hybridflow.rollout.driver.opening import RolloutSettings
from hybridflow.rollout.engine.sglang_engine import EngineFacts
from hybridflow.types import GroupRequest, Lease, SamplingParams
from hybridflow.weights.manifest import TensorEntry
from tests.builders import build_prompt, build_request

FACTS = EngineFacts(pid=1, child_pids=[], node_id="n", kv_cache_tokens=100)
ENTRIES = [TensorEntry("w", (1,), "float32", 7)]


@dataclass
class FakeHandle:
    """Loads weights unless it `dies`; started again, it is there when `is_back` is set."""

    name: str
    dies: bool = False
    is_back: bool = False
    facts: EngineFacts | None = FACTS
    version: int | None = None
    num_restarts: int = 0
    seconds_since_start: float = 0.0
    loading: int | None = None
    leased: list[str] = field(default_factory=list)

    @property
    def worker(self) -> FakeHandle:
        return self

    def call(self, method: str, *args: Any) -> str:
        if method == "begin_weights":
            self.loading = args[0]
        return method

    def result(self, call: str) -> Any:
        if self.dies:
            raise EngineDiedError("is gone")
        return (self.loading, ENTRIES) if call == "end_weights" else None

    def submit(self, leases: list[Lease], sampling: SamplingParams) -> None:
        self.leased += [lease.request.group_id for lease in leases]

    def end(self) -> None:
        self.facts, self.dies = None, False

    def start(self) -> None:
        self.version = None

    def check_ready(self, timeout_s: float = 0.0) -> bool:
        self.facts = FACTS if self.is_back else None
        return self.is_back

    def check_alive(self) -> None:
        pass


class Source:
    """One round, and what engines confirmed of it."""

    def __init__(self) -> None:
        self.confirmed: list[list[str]] = []

    def begin_sync(self, version: int) -> None:
        self._rounds = iter(["bucket"])

    def next_round(self) -> str | None:
        return next(self._rounds, None)

    def end_sync(self, confirmed: Mapping[str, list[TensorEntry]]) -> None:
        self.confirmed.append(list(confirmed))


def requests(*names: str) -> list[GroupRequest]:
    return [build_request(build_prompt(name), group_id=name) for name in names]


def test_an_engine_that_has_not_confirmed_the_version_is_leased_nothing_of_the_next_step() -> None:
    steady, lost = FakeHandle("engine-0"), FakeHandle("engine-1")
    group = EngineGroup(RolloutSettings(RolloutSection(num_engines=2), "float32", 0), Notes())
    for handle in (steady, lost):
        group.add(handle)  # pyright: ignore[reportArgumentType]
    sampling = SamplingParams(temperature=1.0, max_new_tokens=5)

    source = Source()
    group.load_weights(source, 1)
    lost.dies = True
    group.load_weights(source, 2)
    assert source.confirmed == [["engine-0", "engine-1"], ["engine-0"]]
    group.start(requests("a", "b"), sampling)
    assert (steady.leased, lost.leased) == (["a", "b"], [])

    lost.is_back = True
    group.poll()  # finds it started, and gives it the present weights
    assert lost.loading == 2
    assert source.confirmed[2:] == [["engine-1"]], "it is held against what was sent, as any other"
    group.start(requests("c", "d"), sampling)
    assert set(lost.leased) == {"c", "d"}  # the other one has more to do
    group.extend(requests("e"))
    assert (steady.leased, lost.leased[2:]) == (["a", "b", "e"], [])  # at once, of the same step
