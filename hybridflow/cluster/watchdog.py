"""The watchdog of a run: what stands still is named with its stack, and then the run ends, resumable.

    with watchdog.raising(), watchdog.phase("train"):
        ...

Parts of the run are its sources: each beat it asks them what moved. Where nothing did for `cluster.stall.<phase>_s` it
reports, within `REPORT_AFTER_S`, what every worker was doing last and where its threads are, and who gave no
sign; `END_AFTER_S` after the deadline it raises StalledError in the main thread. A part that is gone ends the run
at once. A main thread that no signal reaches, as it stands in Ray's own code (`ray.put` reads from the worker pool's
socket for ever), gets `LET_GO_S`; then the error is told and the process ends, and what is below it by its guardian.

The thread consumes the sources' answers; it waits for nothing longer than a beat; `close` ends it; it produces notes, a
file of stacks, and at most one error. A pure part, on a clock that is handed in, decides when a run stands still: a
deadline per phase, counted from the last sign of life.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn, Protocol

from hybridflow.errors import HybridFlowError, StalledError
from hybridflow.guard.guardian import end_by_itself
from hybridflow.observability.span import stack_of_threads
from hybridflow.observability.visible import visible

REPORT_AFTER_S = 10.0
"""From the deadline to the report, at the latest."""
END_AFTER_S = 30.0
"""From the deadline to the end of the run."""

Action = Literal["report", "end"]


class StallClock:
    """The phase under way and its last sign of life. Times are seconds of one monotonic clock.

    Args:
        limits: By phase, seconds without a sign of life that are a stall. A phase that is not in it has no deadline.
    """

    def __init__(self, limits: Mapping[str, float]) -> None:
        self._limits = limits
        self.phase = ""
        self._moved_at = 0.0
        self._reported = False

    def enter(self, phase: str, now: float) -> None:
        """A phase begins, or "" for none. That is a sign of life."""
        self.phase = phase
        self.moved(now)

    def moved(self, now: float) -> None:
        """A sign of life: a worker entered another span, a completion or a verdict arrived."""
        self._moved_at = max(self._moved_at, now)
        self._reported = False

    @property
    def limit_s(self) -> float | None:
        return self._limits.get(self.phase)

    def seconds_still(self, now: float) -> float:
        return now - self._moved_at

    def check(self, now: float) -> Action | None:
        """ "report" once when the deadline has passed, "end" `END_AFTER_S` after it, else None."""
        limit = self.limit_s
        if limit is None or self.seconds_still(now) <= limit:
            return None
        if self.seconds_still(now) > limit + END_AFTER_S:
            return "end"
        if not self._reported:
            self._reported = True
            return "report"
        return None


logger = logging.getLogger(__name__)

BEAT_S = 1.0
LET_GO_S = 10.0
"""Time that the main thread gets to let go of what it waits for, once it was woken; Ray's waits look each second."""
KEY = "cluster.stall" + ".{}_s"
"""Configuration key of a phase's deadline."""
WAKE_SIGNAL = signal.SIGUSR1
"""To the main thread: stop waiting, see `Watchdog.raising`."""


class Source(Protocol):
    """A part of the run that the watchdog looks at."""

    def look(self) -> bool:
        """Whether anything moved since the last look. Returns at once; HybridFlowError tells of a part that is gone."""
        ...

    def report(self) -> list[str]:
        """Tell what each worker does and where it stands, the culprits first; takes seconds at most."""
        ...


class Watchdog:
    """Looks at the sources of a run in a thread of its own, between `start` and `close`, both of the main thread.

    Args:
        limits: Seconds without a sign of life by phase, see `StallClock`.
        note: Told the report.
        stacks: File of the run folder, under logs/, that the report is appended to, stacks included.
    """

    def __init__(self, limits: Mapping[str, float], note: Callable[[str], None], stacks: Path) -> None:
        self._clock = StallClock(limits)
        self._note = note
        self._stacks = stacks
        self._sources: list[Source] = []
        self._report: list[str] = []
        self._error: HybridFlowError | None = None
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._handler_before: signal.Handlers | Callable[[int, FrameType | None], object] | int | None = None

    def watch(self, source: Source) -> None:
        self._sources.append(source)

    def start(self) -> None:
        self._handler_before = signal.signal(WAKE_SIGNAL, self._interrupt)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; nothing is raised any more."""
        if self._is_closed.is_set() or self._thread.ident is None:
            return
        self._is_closed.set()
        self._thread.join()
        signal.signal(WAKE_SIGNAL, self._handler_before)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Inside, the deadline of this phase holds."""
        with self._lock:
            outer = self._clock.phase
            self._clock.enter(name, time.monotonic())
        try:
            yield
        finally:
            with self._lock:
                self._clock.enter(outer, time.monotonic())

    def moved(self) -> None:
        """A sign of life from any thread."""
        with self._lock:
            self._clock.moved(time.monotonic())

    def _run(self) -> None:
        while not self._is_closed.wait(BEAT_S) and self._error is None:
            try:
                self._beat()
            except HybridFlowError as error:
                self._end(error)
            except Exception as error:  # a bug here must not pass for a run that is watched
                logger.exception("the watchdog failed")
                self._end(StalledError(f"the watchdog failed: {type(error).__name__}: {error}"))

    def _beat(self) -> None:
        has_moved = [source.look() for source in self._sources]
        now = time.monotonic()
        with self._lock:
            if any(has_moved):
                self._clock.moved(now)
            action = self._clock.check(now)
            phase, limit, still = self._clock.phase, self._clock.limit_s, self._clock.seconds_still(now)
        if action is None:
            return
        head = f"no sign of life in {phase.upper()} for {still:.0f} s ({KEY.format(phase)} = {limit:g})"
        if action == "report" or not self._report:
            self._report = [line for source in self._sources for line in source.report()]
            self._write(head)
        first = [line.splitlines()[0] for line in self._report]
        told = f"{head}: {'; '.join(first) or 'no worker answers'}. Stacks are in logs/{self._stacks.name}"
        if action == "report":
            self._note(told)
        else:
            self._end(StalledError(f"{told}. --resume continues from the last checkpoint"))

    def _write(self, head: str) -> None:
        try:
            with self._stacks.open("a", encoding="utf-8") as stream:
                stream.write("\n\n".join([f"{time.strftime('%H:%M:%S')} {head}", *self._report]) + "\n\n")
        except OSError as error:
            logger.warning("cannot write %s: %s", self._stacks, error)

    def _end(self, error: HybridFlowError) -> None:
        self._error = error
        if self._is_closed.is_set():
            return
        signal.pthread_kill(threading.main_thread().ident or 0, WAKE_SIGNAL)
        if not self._is_closed.wait(LET_GO_S):
            self._give_up(error)

    def _give_up(self, error: HybridFlowError) -> NoReturn:
        """Ends this process without its main thread, and past sys.stderr, whose lock that may hold."""
        told = f"{error}. The driver was ended: it stood where no signal reaches it, see logs/{self._stacks.name}"
        self._report = [f"driver (process {os.getpid()})\n{stack_of_threads()}"]
        self._write(f"the main thread of the driver does not let go after {LET_GO_S:g} s")
        with suppress(OSError):  # whoever read it is gone
            os.write(2, f"error: {type(error).__name__}\n{visible(told)}\n".encode())
        end_by_itself()
        os._exit(1)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Inside, the main thread can be ended: with the error of the watchdog, whatever it was doing. May be nested.

        An error of another part is taken for what it died of, where a source knows that: a worker dies with Ray's pool.
        With any exception the watch is over: no second one is thrown into what clears up behind the first.
        """
        try:
            try:
                yield
            except BaseException:
                self.close()
                raise
        except BaseException as cause:  # also what was thrown in before the watch was over
            self.close()
            if self._error is None and isinstance(cause, Exception):
                self._error = self._find_gone()
            if self._error is not None and self._error is not cause:
                raise self._error from cause
            raise

    def _find_gone(self) -> HybridFlowError | None:
        """The error of the first source of which a part is gone."""
        for source in self._sources:
            try:
                source.look()
            except HybridFlowError as error:
                return error
        return None

    def _interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt in the main thread: nothing else passes through Ray's waits."""
        if self._error is not None and not self._is_closed.is_set():
            raise KeyboardInterrupt
