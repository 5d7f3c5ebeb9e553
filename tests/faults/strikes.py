"""Single faults: what is done to a run, when, and whether it came to its end in time with the culprit named."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.attempt import Attempt
from tests.faults.kinds import ANY_STOP, KINDS, STOPPED, find

MOST_SLOW = 8.0
SLOW = min(max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), MOST_SLOW)
"""Times as slow as a machine that has nothing else to do; all limits grow with it."""
STALL_S = 20.0 * SLOW
"""cluster.stall of every phase."""
KILLED_S, STOPPED_S, FULL_S = 30.0 * SLOW, STALL_S + 30.0 + 30.0 * SLOW, 60.0 * SLOW
"""Until a run that cannot go on has ended; what goes on must have said so."""
APPEARS_S = 120.0 * SLOW
NAMED_S = 5.0 * SLOW
"""After the end of the process that the user started: where that was killed, its guardian speaks last."""
FULL_DISK = ("No space left", "File too large")


@dataclass(frozen=True)
class Strike:
    """One fault. `delay_s` after a process of the kind is there, in the start of the run or in a step of it."""

    campaign: str
    kind: str
    in_start: bool
    delay_s: float


@dataclass(frozen=True)
class Outcome:
    """The outcome of a strike. `ended`: whether the run has ended, with an error or finished."""

    strike: Strike
    struck: bool
    ended: bool
    in_time: bool
    named: bool
    seconds: float
    said: str = ""


def plan(campaign: str, count: int, seed: int) -> list[Strike]:
    """`count` faults; each kind of the campaign as often as the others, in random order, at random moments."""
    kinds = {
        "kills": [("kills", kind) for kind in KINDS],
        "stops": [("stops", kind) for kind in STOPPED],
        "disks": [("disks", "disk")],
    }
    kinds["all"] = [*kinds["kills"], *kinds["stops"], *kinds["disks"] * 3]
    kinds["ci"] = [("kills", "driver"), ("kills", "train_worker"), ("kills", "scheduler")]
    kinds["ci"] += [("stops", "train_worker"), ("disks", "disk")]
    draw = random.Random(seed)
    drawn: list[tuple[str, str]] = []
    while len(drawn) < count:
        drawn += draw.sample(kinds[campaign], len(kinds[campaign]))
    return [
        Strike(name, kind, in_start=name == "kills" and draw.random() < 0.3, delay_s=draw.uniform(0, 3))
        for name, kind in drawn[:count]
    ]


def strike(what: Strike, attempt: Attempt, disk: Path, is_mounted: bool) -> Outcome:
    """Does it, and waits until the run has ended, or has said what it replaced."""
    if not what.in_start and not _wait_for(lambda: _has_stepped(attempt), attempt):
        return Outcome(what, False, attempt.process.poll() is not None, True, True, 0.0)
    if what.campaign == "disks":
        time.sleep(what.delay_s)
        return _fill(what, attempt, disk, is_mounted)
    victims: list[psutil.Process] = []
    while not victims:  # one that scores for the first checks is gone again at once
        if not _wait_for(lambda: bool(find(what.kind, attempt.first)), attempt):
            return Outcome(what, False, attempt.process.poll() is not None, True, True, 0.0)
        time.sleep(what.delay_s)
        victims = find(what.kind, attempt.first)
    victim, before = victims[-1], attempt.log.stat().st_size
    started = time.monotonic()
    is_stop = what.campaign == "stops"
    os.kill(victim.pid, signal.SIGSTOP if is_stop else signal.SIGKILL)
    names = ANY_STOP if is_stop else tuple(part.format(pid=victim.pid) for part in KINDS[what.kind].named)
    limit_s = STOPPED_S if is_stop else KILLED_S
    return _follow(what, attempt, names, before, started, limit_s)


def _follow(
    what: Strike, attempt: Attempt, names: tuple[str, ...], before: int, started: float, limit_s: float
) -> Outcome:
    """Until the run has ended, or has named what it goes on without."""
    is_fatal = what.campaign == "disks" or KINDS[what.kind].ends_run
    ended_after: float | None = None
    while True:
        passed, said = time.monotonic() - started, attempt.said(before)
        is_named = not names or any(name in said for name in names)
        if ended_after is None and attempt.process.poll() is not None:
            ended_after = passed
        if ended_after is not None and (is_named or passed > ended_after + NAMED_S):
            is_well = attempt.process.returncode == 0 or (is_named and "Traceback" not in said)
            return Outcome(what, True, True, True, is_well, ended_after, said)
        if ended_after is None and is_named and not is_fatal and passed > 1:
            return Outcome(what, True, False, True, True, passed, said)
        if ended_after is None and passed > limit_s:
            return Outcome(what, True, False, False, is_named, passed, attempt.said())
        time.sleep(0.1)


def _fill(what: Strike, attempt: Attempt, disk: Path, is_mounted: bool) -> Outcome:
    before, started = attempt.log.stat().st_size, time.monotonic()
    filler = disk / "filler"
    if is_mounted:
        with filler.open("wb", buffering=0) as stream:
            try:
                while True:
                    stream.write(bytes(2**16))
            except OSError:
                pass  # it is full, as it should be
    else:
        for process in [attempt.first, *attempt.first.children(recursive=True)]:
            try:
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue  # it ended meanwhile
    try:
        outcome = _follow(what, attempt, FULL_DISK, before, started, FULL_S)
    finally:
        filler.unlink(missing_ok=True)
    told = outcome.said
    is_clear = outcome.named and ("no space" not in told.lower() or ("free" in told and "--resume" in told))
    return Outcome(what, True, outcome.ended, outcome.in_time, is_clear, outcome.seconds, told)


def _has_stepped(attempt: Attempt) -> bool:
    """Whether a step was done since this start."""
    metrics = attempt.runs / "faults/metrics.jsonl"
    return metrics.exists() and metrics.stat().st_mtime > attempt.since and "all workers are ready" in attempt.said()


def _wait_for(condition: Callable[[], bool], attempt: Attempt) -> bool:
    """Whether it came true while the run lived."""
    deadline = time.monotonic() + APPEARS_S
    while attempt.process.poll() is None and time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False
