"""Calls to actors in which a dead or failing actor is always named.

A `Worker` is an actor with a name for people. `gather` waits for calls to several at once; when one fails, it finds out
which process really died, since a dead peer often shows first as a broken connection in another worker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from hybridflow.errors import HybridFlowError, WorkerError

logger = logging.getLogger(__name__)

WAIT_NOTICE_S = 30.0
DIAGNOSIS_S = 3.0


@dataclass(frozen=True)
class Worker:
    """An actor, its name ("train worker 1"), the error class of its room, and its process id."""

    name: str
    actor: Any
    error: type[WorkerError]
    pid: int = 0

    def call(self, method: str, *args: Any, **kwargs: Any) -> Call:
        """Starts a method; the result is had from `gather`."""
        return Call(self, method, getattr(self.actor, method).remote(*args, **kwargs))


@dataclass(frozen=True)
class Call:
    """A running method of a worker."""

    worker: Worker
    method: str
    ref: Any = field(repr=False)


def identify(name: str, actor: Any, error: type[WorkerError]) -> Worker:
    """Waits until the actor answers, and returns it with its process id. Raises `error` if it failed to start."""
    (pid,) = gather([Worker(name, actor, error).call("ping")])
    return Worker(name, actor, error, pid)


def gather(calls: list[Call], watch: list[Worker] | None = None) -> list[Any]:
    """Results of the calls, in their order.

    Raises the worker's own HybridFlowError, or an error of its room that names the worker. `watch` lists the workers that
    may be the cause of a failure although they are not called; by default those called.
    """
    pending = {call.ref: call for call in calls}
    started = time.monotonic()
    noticed = started
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=5.0)
        for ref in ready:
            call = pending.pop(ref)
            check_failed(call, watch if watch is not None else [call.worker for call in calls])
        if time.monotonic() - noticed > WAIT_NOTICE_S:
            noticed = time.monotonic()
            names = ", ".join(sorted({f"{call.worker.name} ({call.method})" for call in pending.values()}))
            logger.warning("waiting for %s since %.0f s", names, noticed - started)
    return [ray.get(call.ref) for call in calls]


def are_ready(calls: list[Call]) -> bool:
    """Whether all calls have ended, or one of them has failed so that `gather` raises at once. Never blocks."""
    ready, pending = ray.wait([call.ref for call in calls], num_returns=len(calls), timeout=0)
    return not pending or any(_is_failed(ref) for ref in ready)


def _is_failed(ref: Any) -> bool:
    try:
        ray.get(ref, timeout=0)
    except (RayActorError, RayTaskError):
        return True
    return False


def check_failed(call: Call, watch: list[Worker]) -> None:
    """Raises the error of a finished call, if it failed; see `gather`."""
    try:
        ray.get(call.ref)
    except RayActorError as error:
        raise _death(call.worker, call.method, error) from error
    except RayTaskError as error:
        dead = find_dead(watch)
        if dead:
            raise _death(dead[0], call.method, None) from error
        cause = error.cause
        if isinstance(cause, HybridFlowError):
            raise cause from error
        raise call.worker.error(
            f"{call.worker.name} failed in {call.method}: {type(cause).__name__}: {cause}"
        ) from error


def find_dead(workers: list[Worker]) -> list[Worker]:
    """Those whose process is gone. A busy worker does not answer in time and counts as alive."""
    pings = {worker.actor.ping.remote(): worker for worker in workers}
    ready, _ = ray.wait(list(pings), num_returns=len(pings), timeout=DIAGNOSIS_S)
    return [pings[ref] for ref in ready if _is_dead(ref)]


def _is_dead(ref: Any) -> bool:
    try:
        ray.get(ref, timeout=0)
    except RayActorError:
        return True
    except (RayTaskError, GetTimeoutError):
        return False
    return False


def _death(worker: Worker, method: str, error: RayActorError | None) -> WorkerError:
    """The error that names a worker whose process is gone, and says whether it ever started."""
    log = "Its log is in the run folder under logs/"
    if error is not None and "creation task" in str(error):
        reason = str(error).strip().splitlines()[-1]
        return worker.error(f"{worker.name} failed to start: {reason}. {log}")
    return worker.error(
        f"{worker.name} (process {worker.pid}) died during {method}: killed, or out of memory. {log}; "
        f"--resume continues from the last checkpoint"
    )


def stream(worker: Worker, method: str, *args: Any) -> Iterator[Any]:
    """Starts a streaming method now, and returns an iterator over references to what it yields, as it yields."""
    generator = getattr(worker.actor, method).options(num_returns="streaming").remote(*args)

    def references() -> Iterator[Any]:
        try:
            # A loop, not `yield from`: that would close Ray's generator when the reader stops, which it does not support.
            for reference in generator:
                yield reference
        except RayActorError as error:
            raise _death(worker, method, error) from error

    return references()
