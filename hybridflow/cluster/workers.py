"""Calls to actors in which a dead or failing actor is always named.

A `Worker` is an actor with a name for people. `gather` waits for calls to several at once; when one fails, it finds out
which process really died, since a dead peer often shows first as a broken connection in another worker.
"""

from __future__ import annotations

import logging
import re
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
WAIT_STEP_S = 5.0
MAX_UNREAD = 2
"""Items that a streaming method may be ahead of its reader: with buckets, what bounds the memory on the way."""
RUN_LOGS = "in the run folder under logs/"
RESUME = "--resume continues from the last checkpoint"


@dataclass(frozen=True)
class Worker:
    """An actor, its name ("train worker 1"), the error class of its package, and its process id."""

    name: str
    actor: Any
    error: type[WorkerError]
    pid: int = 0
    log: str = RUN_LOGS
    """Where its log is."""
    remedy: str = RESUME
    """Remedy that the user is told when it has died."""

    def call(self, method: str, *args: Any, **kwargs: Any) -> Call:
        """Starts a method; the result is had from `gather`."""
        return Call(self, method, getattr(self.actor, method).remote(*args, **kwargs))


@dataclass(frozen=True)
class Call:
    """A running method of a worker."""

    worker: Worker
    method: str
    ref: Any = field(repr=False)


_known: list[Worker] = []
"""Every worker of the present run: the one that died is looked for among all of them."""


def identify(
    name: str,
    actor: Any,
    error: type[WorkerError],
    timeout_s: float | None = None,
    *,
    log: str = RUN_LOGS,
    remedy: str = RESUME,
) -> Worker:
    """Waits until the actor answers, and returns it with its process id.

    Raises `error` if it failed to start, or does not answer within `timeout_s`.
    """
    (pid,) = gather([Worker(name, actor, error, log=log, remedy=remedy).call("ping")], timeout_s)
    worker = Worker(name, actor, error, pid, log, remedy)
    _known.append(worker)
    return worker


def forget_workers() -> None:
    """The run is over; none of its workers can be to blame for what comes."""
    _known.clear()


def gather(calls: list[Call], timeout_s: float | None = None) -> list[Any]:
    """Results of the calls, in their order.

    Raises the worker's own HybridFlowError, or an error of its package that names the worker to blame: the one whose
    process is gone, be it called or not. Also raises when not all have answered within `timeout_s`.
    """
    pending = {call.ref: call for call in calls}
    started = time.monotonic()
    noticed = started
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=WAIT_STEP_S)
        for ref in ready:
            check_failed(pending.pop(ref))
        now = time.monotonic()
        names = ", ".join(sorted({f"{call.worker.name} ({call.method})" for call in pending.values()}))
        if pending and timeout_s is not None and now - started > timeout_s:
            late = next(iter(pending.values())).worker
            raise late.error(f"no answer from {names} within {timeout_s:g} s. Its log is {late.log}")
        if pending and now - noticed > WAIT_NOTICE_S:
            noticed = now
            logger.info("waiting for %s since %.0f s", names, now - started)
    return [ray.get(call.ref) for call in calls]


def check_failed(call: Call) -> None:
    """Raises the error of a finished call, if it failed; see `gather`."""
    try:
        ray.get(call.ref)
    except RayActorError as error:
        # Also raised where an argument of the call was to come from another worker, and that one died.
        dead = find_dead(_known)
        raise death_of(dead[0] if dead else call.worker, f"during {call.method}", error) from error
    except RayTaskError as error:
        # A dead peer often shows first as a broken connection in a worker that is alive.
        dead = find_dead(_known)
        if dead:
            raise death_of(dead[0], f"during {call.method}") from error
        cause = error.cause
        if isinstance(cause, HybridFlowError):
            raise cause from error
        worker, during = _raised_by(error, call)
        raise worker.error(
            f"{worker.name} failed {during}: {type(cause).__name__}: {cause}. Its log is {worker.log}"
        ) from error


def _raised_by(error: RayTaskError, call: Call) -> tuple[Worker, str]:
    """The worker in whose process the error was raised, and when.

    Not always the one that was called: where an argument was to come from another worker, Ray hands on what that one
    raised.
    """
    pids = re.findall(r"\(pid=(\d+)", str(error))  # Ray writes each process that it went through, the origin last
    other = next((worker for worker in _known if pids and worker.pid == int(pids[-1])), None)
    if other is None or other.pid == call.worker.pid:
        return call.worker, f"in {call.method}"
    return other, f"to give {call.worker.name} what {call.method} needs"


def find_dead(workers: list[Worker]) -> list[Worker]:
    """The workers whose process is gone. A busy worker does not answer in time and counts as alive."""
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


def death_of(worker: Worker, when: str, error: RayActorError | None = None) -> WorkerError:
    """The error that names a worker whose process is gone, and says whether it ever started."""
    if error is not None and "creation task" in str(error):
        reason = str(error).strip().splitlines()[-1]
        return worker.error(f"{worker.name} failed to start: {reason}. Its log is {worker.log}")
    return worker.error(
        f"{worker.name} (process {worker.pid}) died {when}: killed, or out of memory. Its log is "
        f"{worker.log}; {worker.remedy}"
    )


def stream(worker: Worker, method: str, *args: Any) -> Iterator[Any]:
    """Starts a streaming method now, and returns an iterator over references to what it yields, as it yields.

    The iterator raises the error of the worker's package, naming it, if its process is gone.
    """
    options = {"num_returns": "streaming", "_generator_backpressure_num_objects": MAX_UNREAD}
    generator = getattr(worker.actor, method).options(**options).remote(*args)

    def references() -> Iterator[Any]:
        # A loop, not `yield from`: that would close Ray's generator when the reader stops, and Ray does not support it.
        for reference in generator:
            # Nor does Ray raise here: a stream that broke off ends with the reference of the call itself.
            if reference == generator.completed():
                check_failed(Call(worker, method, reference))
            yield reference

    return references()
