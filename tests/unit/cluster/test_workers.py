"""Who is blamed for a call that failed. Ray's answers are made by hand; its exceptions are the real ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from hybridflow.cluster import workers
from hybridflow.cluster.workers import Call, Worker, forget_workers, gather, identify, stream
from hybridflow.errors import RolloutError, TrainerError, WeightSyncError

PENDING = GetTimeoutError("not yet")


class Ref:
    """The result of a method call: a value, or an exception to raise; `PENDING` never comes."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome


class FakeRay:
    def wait(self, refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        ready = [ref for ref in refs if ref.outcome is not PENDING][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref: Ref, timeout: float | None = None) -> Any:
        if isinstance(ref.outcome, Exception):
            raise ref.outcome
        return ref.outcome


class FakeMethod:
    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    def remote(self, *_: Any) -> Any:
        return Ref(self.outcome)


class FakeActor:
    """An actor whose methods end as given; `ping` gives its process id, or raises once it is dead."""

    def __init__(self, pid: int, **outcomes: Any) -> None:
        self.ping = FakeMethod(pid)
        for name, outcome in outcomes.items():
            setattr(self, name, FakeMethod(outcome))

    def die(self) -> None:
        self.ping = FakeMethod(RayActorError())


@pytest.fixture(autouse=True)
def _fake_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(workers, "ray", FakeRay())
    forget_workers()
    yield
    forget_workers()


def raised(pid: int, cause: Exception) -> Exception:
    """The error that `ray.get` raises for a method that raised `cause` in process `pid`."""
    error = RayTaskError("ray::Worker.method()", f"ray::Worker.method() (pid={pid}, ip=1.2.3.4)", cause)
    return error.as_instanceof_cause()


def trainer(pid: int = 11, **outcomes: Any) -> tuple[Worker, FakeActor]:
    actor = FakeActor(pid, **outcomes)
    return identify("train worker 0", actor, TrainerError), actor


def engine(pid: int = 22, **outcomes: Any) -> tuple[Worker, FakeActor]:
    actor = FakeActor(pid, **outcomes)
    return identify("rollout worker 0", actor, RolloutError), actor


def test_results_are_in_the_order_of_the_calls() -> None:
    (first, _), (second, _) = trainer(step="a"), engine(step="b")
    assert gather([second.call("step"), first.call("step")]) == ["b", "a"]
    assert (first.pid, second.pid) == (11, 22)


def test_an_error_made_for_users_comes_through() -> None:
    worker, _ = engine(load=raised(22, WeightSyncError("tensor w arrived changed")))
    with pytest.raises(WeightSyncError, match=r"^tensor w arrived changed$"):
        gather([worker.call("load")])


def test_any_other_error_names_worker_and_method() -> None:
    worker, _ = trainer(update=raised(11, ValueError("shapes")))
    with pytest.raises(TrainerError, match=r"train worker 0 failed in update: ValueError: shapes\. .*logs/"):
        gather([worker.call("update")])


def test_an_argument_that_failed_is_the_fault_of_its_maker() -> None:
    trainer()
    worker, _ = engine()
    through = RayTaskError(
        "ray::Engine.load()",
        "ray::Engine.load() (pid=22, ip=1.2.3.4)\nRayTaskError: ray::Trainer.stream() (pid=11, ip=1.2.3.4)",
        ValueError("boom"),
    )
    with pytest.raises(TrainerError, match="train worker 0 failed to give rollout worker 0 what load needs"):
        gather([Call(worker, "load", Ref(through.as_instanceof_cause()))])


def test_a_dead_process_is_named_with_its_id() -> None:
    worker, actor = trainer(update=RayActorError())
    actor.die()
    with pytest.raises(TrainerError, match=r"train worker 0 \(process 11\) died during update.*--resume"):
        gather([worker.call("update")])


def test_a_broken_connection_is_the_fault_of_the_peer_that_died() -> None:
    _, dead = trainer()
    alive, _ = engine(load=raised(22, ConnectionError("reset by peer")))
    dead.die()
    with pytest.raises(TrainerError, match=r"train worker 0 \(process 11\) died during load"):
        gather([alive.call("load")])


def test_a_failed_start_says_so() -> None:
    actor = FakeActor(0)
    actor.ping = FakeMethod(StartError())
    with pytest.raises(RolloutError, match="rollout worker 0 failed to start: ConfigError: no such argument"):
        identify("rollout worker 0", actor, RolloutError)


class StartError(RayActorError):
    def __str__(self) -> str:
        return "The actor died because of an error raised in its creation task\nConfigError: no such argument"


def test_no_answer_in_time_is_named() -> None:
    actor = FakeActor(0)
    actor.ping = FakeMethod(PENDING)
    with pytest.raises(RolloutError, match=r"no answer from rollout worker 0 \(ping\) within 0 s"):
        identify("rollout worker 0", actor, RolloutError, timeout_s=0.0)


class FakeStream:
    """Ray's generator of references: one that broke off ends with the reference of the call."""

    def __init__(self, refs: list[Ref], end: Ref) -> None:
        self._refs, self._end = refs, end

    def __iter__(self) -> Iterator[Ref]:
        yield from self._refs
        if isinstance(self._end.outcome, Exception):
            yield self._end

    def completed(self) -> Ref:
        return self._end


def streaming(end: Any) -> tuple[Worker, FakeActor]:
    worker, actor = trainer()
    result = FakeStream([Ref(1), Ref(2)], Ref(end))
    actor.stream_weights = type("M", (), {"options": lambda *_, **__: type("R", (), {"remote": lambda *_: result})()})()
    return worker, actor


def test_a_stream_gives_references_as_they_come() -> None:
    worker, _ = streaming(None)
    assert [ref.outcome for ref in stream(worker, "stream_weights")] == [1, 2]


def test_a_stream_that_broke_off_names_the_sender_not_the_reader() -> None:
    worker, actor = streaming(RayActorError())
    references = stream(worker, "stream_weights")
    assert [next(references).outcome, next(references).outcome] == [1, 2]
    actor.die()
    with pytest.raises(TrainerError, match=r"train worker 0 \(process 11\) died during stream_weights"):
        next(references)
