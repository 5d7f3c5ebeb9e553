"""Life signs of Ray actors and of Ray's own processes, as sources of the watchdog."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError

from hybridflow.cluster.workers import Worker, death_of
from hybridflow.errors import PlacementError
from hybridflow.observability.span import LifeSign

STACK_TIMEOUT_S = 3.0
POOL = "worker pool (raylet)"
NAMES = {"gcs_server": "control service (GCS)", "raylet": POOL}
"""Ray's processes that a run cannot do without, by name."""
PEERS = "torch/distributed/"
"""A thread that is in there waits for another rank."""


@dataclass
class _Seen:
    """The last signs of life of one worker."""

    ref: Any = None
    sign: LifeSign | None = None
    heard_at: float | None = None


class WorkerLife:
    """Actors with methods `life` and `stack` that answer while the actor computes."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._seen = [_Seen() for _ in workers]

    def look(self) -> bool:
        """Whether a worker has entered another span. Raises the error of the package for a worker that is gone.

        The next call that needs it may be an hour of rollout away.
        """
        has_moved = False
        for worker, seen in zip(self._workers, self._seen, strict=True):
            if seen.ref is not None and ray.wait([seen.ref], timeout=0)[0]:
                has_moved |= _hear(worker, seen)
                seen.ref = None
            if seen.ref is None:
                seen.ref = worker.actor.life.remote()
        return has_moved

    def report(self) -> list[str]:
        """A line and a stack per worker; those that do not wait for peers come first."""
        calls = [worker.actor.stack.remote() for worker in self._workers]
        ray.wait(calls, num_returns=len(calls), timeout=STACK_TIMEOUT_S)
        told = [self._tell(*one) for one in zip(self._workers, self._seen, calls, strict=True)]
        return [line for _, line in sorted(told, key=lambda item: item[0])]

    def _tell(self, worker: Worker, seen: _Seen, call: Any) -> tuple[bool, str]:
        """(whether it only waits for peers, what to say of it)."""
        where = "gave no sign of life yet"
        if seen.sign is not None:
            silent = time.monotonic() - (seen.heard_at or 0.0)
            where = f"in {seen.sign.span!r} for {seen.sign.seconds + silent:.0f} s"
        name = f"{worker.name} (process {worker.pid}) {where}"
        try:
            stack: str = ray.get(call, timeout=0)
        except (GetTimeoutError, RayError):
            return False, f"{name}, {_why_silent(worker.pid)}. Its log is {worker.log}"
        waits = any(PEERS in line for line in stack.splitlines())
        return waits, f"{name}{', waits for its peers' if waits else ''}\n{stack}"


def _hear(worker: Worker, seen: _Seen) -> bool:
    """Whether the answer that has come tells of another span."""
    try:
        sign: LifeSign = ray.get(seen.ref)
    except ActorDiedError as error:
        when = f"after it began {seen.sign.span!r}" if seen.sign is not None else "before it gave a sign of life"
        raise death_of(worker, when, error) from error
    except RayError:  # it cannot be reached for now
        return False
    has_moved = seen.sign is None or sign.number != seen.sign.number
    seen.sign, seen.heard_at = sign, time.monotonic()
    return has_moved


def _why_silent(pid: int) -> str:
    """The system's word on a process of this node that does not answer."""
    status = _status(pid)
    if status is None:
        return "does not answer: no such process on this node"
    if status == psutil.STATUS_STOPPED:
        return "does not answer: it is stopped (kill -CONT lets it go on)"
    return f"does not answer: its process is {status}"


def _status(pid: int) -> str | None:
    try:
        return psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return None


AGENTS = ("dashboard/agent.py", "runtime_env/agent/", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""In the command line of a worker pool's agents, before and after they have given themselves a title."""


class RayLife:
    """The processes that a private Ray session cannot do without: its control service, its worker pool, its agents.

    Without them calls do not fail for a minute, or for ever. The worker pool ends itself, and all workers before it,
    where one of its agents has died, and its agents end with it.

    Args:
        started: Children of this process by Ray's names of them, see `session.own_processes`.
    """

    def __init__(self, started: Mapping[str, subprocess.Popen[bytes]]) -> None:
        self._started = {NAMES[kind]: process for kind, process in started.items() if kind in NAMES}
        self._processes = {name: psutil.Process(process.pid) for name, process in self._started.items()}
        pool = self._processes.get(POOL)
        for number, agent in enumerate(agents_of(pool) if pool is not None else []):
            self._processes[f"agent {number} of the worker pool"] = agent

    def look(self) -> bool:
        """Never a sign of life. Raises PlacementError for a process that has ended: the one that others ended with."""
        gone = [name for name, process in self._processes.items() if not lives(process)]
        if gone:
            culprit = next(filter(self._was_killed, gone), gone[-1])  # agents come last: the pool ends itself with them
            raise PlacementError(
                f"Ray's {culprit} (process {self._processes[culprit].pid}) has ended: killed, or out of memory. Its "
                f"logs are in the session folder of Ray; --resume continues from the last checkpoint"
            )
        return False

    def _was_killed(self, name: str) -> bool:
        """Whether this child of ours ended by a signal; of an agent we cannot know."""
        process = self._started.get(name)
        return process is not None and (process.poll() or 0) < 0

    def report(self) -> list[str]:
        """Processes that are stopped."""
        return [
            f"Ray's {kind} (process {process.pid}) is stopped (kill -CONT lets it go on)"
            for kind, process in self._processes.items()
            if process.is_running() and process.status() == psutil.STATUS_STOPPED
        ]


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def agents_of(pool: psutil.Process) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        for child in pool.children():
            with suppress(psutil.NoSuchProcess):
                if any(part in " ".join(child.cmdline()) for part in AGENTS):
                    found.append(child)
    return found


class ProcessLife:
    """Processes of this node that have no life signs of their own: only that one is stopped is told.

    Args:
        pids: Process ids by name, of the moment.
    """

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        self._pids = pids

    def look(self) -> bool:
        return False

    def report(self) -> list[str]:
        """The workers that are stopped."""
        return [
            f"{name} (process {pid}) is stopped (kill -CONT lets it go on)"
            for name, pid in self._pids().items()
            if _status(pid) == psutil.STATUS_STOPPED
        ]
