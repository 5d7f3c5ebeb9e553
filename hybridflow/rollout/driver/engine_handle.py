"""Handle of one engine in the driver: its actor, whether it lives, and how to start it again.

An engine is asked for its status at intervals. It hangs if it owes an answer for `hang_timeout_s` (its actor is
stopped or stuck), or if it answers while nothing moves in it for as long although it has work (its scheduler or
detokenizer is stopped, or a rank of it waits for a peer for ever).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from hybridflow.cluster.processes import kill_on_node
from hybridflow.cluster.workers import Call, Worker, check_failed, find_dead
from hybridflow.errors import RolloutError
from hybridflow.rollout.engine.sglang_engine import EngineFacts, EngineStatus
from hybridflow.types import Lease, SamplingParams

logger = logging.getLogger(__name__)


class EngineDiedError(Exception):
    """An engine is gone or hangs; its message says how that showed. Never leaves this package."""


class EngineHealth:
    """Answers and progress of one engine between its start and its end. Pure: the caller has the clock, in s."""

    def __init__(self, now: float, hang_timeout_s: float) -> None:
        self._hang_timeout_s = hang_timeout_s
        self._asked_at: float | None = None
        self._moved_at = now
        self._progress: tuple[int, ...] | None = None
        self._has_work = False
        self.num_moves = 0
        """Looks that found it further than the one before."""

    def given_work(self, now: float) -> None:
        """Work was sent; time without progress counts from here."""
        self._moved_at = max(self._moved_at, now)
        self._has_work = True

    def asked(self, now: float) -> None:
        """A status was asked for, and the one before has been answered."""
        self._asked_at = now

    def answered(self, now: float, progress: tuple[int, ...], num_in_flight: int) -> None:
        """The status came. `progress` is any state that changes while the engine works."""
        self._asked_at = None
        self.num_moves += self._progress is not None and progress != self._progress
        if progress != self._progress or not num_in_flight:
            self._moved_at = now
        self._progress = progress
        self._has_work = num_in_flight > 0

    def complaint(self, now: float) -> str | None:
        """Why the engine is taken for hung, or None."""
        if self._asked_at is not None and now - self._asked_at > self._hang_timeout_s:
            return f"it has not answered for {now - self._asked_at:.1f} s"
        if self._has_work and now - self._moved_at > self._hang_timeout_s:
            return f"it has work, and nothing has moved in it for {now - self._moved_at:.1f} s"
        return None


class EngineHandle:
    """Engine `name`. It is starting until `facts` is there, and serves the weights version it has confirmed.

    Args:
        create: makes the engine's actor; called for each start.
        hang_timeout_s, heartbeat_s, start_timeout_s: as in the configuration.
    """

    def __init__(
        self,
        name: str,
        create: Callable[[], Any],
        *,
        heartbeat_s: float,
        hang_timeout_s: float,
        start_timeout_s: float,
        initial_version: int | None,
    ) -> None:
        self.name = name
        self._create = create
        self._heartbeat_s = heartbeat_s
        self._hang_timeout_s = hang_timeout_s
        self._start_timeout_s = start_timeout_s
        self._initial_version = initial_version
        self.num_restarts = 0
        """In a row: back to 0 when the engine delivers."""
        self.start()

    # -------------------------------------------------------------------------------------------------- life cycle

    def start(self) -> None:
        """Creates the actor and returns; `check_ready` tells when the engine answers."""
        self.worker = Worker(self.name, self._create(), RolloutError)
        self.facts: EngineFacts | None = None
        self.version: int | None = None
        """Weights version that the engine has confirmed; None: it may not decode."""
        self._started_at = time.monotonic()
        self._describing: Call | None = self.worker.call("describe")
        self._status: Call | None = None
        self._status_due = 0.0
        self._submits: list[Call] = []

    @property
    def seconds_since_start(self) -> float:
        return time.monotonic() - self._started_at

    def check_ready(self, timeout_s: float = 0.0) -> bool:
        """Whether the engine has just become ready. Raises RolloutError if its start failed or takes too long."""
        if self._describing is None:
            return False
        ready, _ = ray.wait([self._describing.ref], timeout=timeout_s)
        if not ready:
            if self.seconds_since_start > self._start_timeout_s:
                raise RolloutError(
                    f"no answer from {self.name} within rollout.start_timeout_s = {self._start_timeout_s:g} s of its "
                    f"start. Its log is in the run folder under logs/"
                )
            return False
        check_failed(self._describing)
        facts: EngineFacts = ray.get(self._describing.ref)
        self._describing = None
        self.facts, self.version = facts, self._initial_version
        self.worker = Worker(self.name, self.worker.actor, RolloutError, facts.pid)
        self._health = EngineHealth(time.monotonic(), self._hang_timeout_s)
        return True

    @property
    def pids(self) -> list[int]:
        """Ids of the actor's and of SGLang's processes; none while it starts."""
        return [self.facts.pid, *self.facts.child_pids] if self.facts else []

    @property
    def num_moves(self) -> int:
        """Grows while the engine gets on with its work."""
        return self._health.num_moves if self.facts else 0

    def end(self) -> None:
        """Ends every process of the engine, also stopped ones."""
        with suppress(RayError, ValueError):
            ray.kill(self.worker.actor)
        if self.facts is not None:
            kill_on_node(self.facts.node_id, [self.facts.pid], "RolloutWorker")
            kill_on_node(self.facts.node_id, self.facts.child_pids, "sglang")

    # ------------------------------------------------------------------------------------------------------- work

    def submit(self, leases: list[Lease], sampling: SamplingParams) -> None:
        """Hands leases over."""
        self._health.given_work(time.monotonic())
        self._submits.append(self.worker.call("submit", leases, sampling))

    def check_alive(self) -> None:
        """Looks at the engine if a heartbeat is due; never waits for it.

        Raises EngineDiedError for one that is gone or hangs, and the engine's own error for what it refused to do.
        """
        now = time.monotonic()
        waiting = [*self._submits, *([self._status] if self._status else [])]
        ready = set(ray.wait([call.ref for call in waiting], num_returns=len(waiting), timeout=0)[0]) if waiting else ()
        for call in [call for call in waiting if call.ref in ready]:
            result = self.result(call)
            if call is not self._status:
                self._submits.remove(call)
                continue
            status: EngineStatus = result
            self._status = None
            self._health.answered(now, status.progress, status.num_in_flight)
        if self._status is None and now >= self._status_due:
            self._status = self.worker.call("status")
            self._status_due = now + self._heartbeat_s
            self._health.asked(now)
        if complaint := self._health.complaint(now):
            raise EngineDiedError(f"hangs: {complaint}")

    def result(self, call: Call) -> Any:
        """The result of a call to this engine.

        Raises EngineDiedError if the engine is gone or the answer stays away for `hang_timeout_s`; else as
        `cluster.workers.check_failed`, which blames the worker whose process is gone.
        """
        try:
            return ray.get(call.ref, timeout=self._hang_timeout_s)
        except GetTimeoutError as error:
            raise EngineDiedError(f"hangs: {call.method} has not answered for {self._hang_timeout_s:g} s") from error
        except RayError as error:
            if find_dead([self.worker]):
                raise EngineDiedError("is gone: its process was killed, or ran out of memory") from error
            check_failed(call)
        raise AssertionError(f"{call.method} of {self.name} failed without an error")
