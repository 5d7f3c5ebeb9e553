"""What a user watches while a run goes on.

On a terminal: one panel that shows where the run is (stage, phase, step), whether it learns (reward), whether it is
sound (entropy, logprob gap), how fast each phase is and when it will end. Elsewhere (a pipe, a log file, CI): one plain
line per step. In both, a phase that goes on for 30 s without news says so.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from hybridflow.observability.display_state import DEFAULT_NAMES, DisplayState, MetricNames, format_duration, plain_line
from hybridflow.observability.log import LOUD_AFTER_S
from hybridflow.observability.panel import render


class LiveDisplay:
    """Shows the progress of one run. Calls come from one thread, the driver's.

    display = LiveDisplay("quickstart")
    display.start("RL", total_steps=30, first_step=0)
    display.phase("ROLLOUT")
    display.step(0, metrics)
    display.close()
    display.summary({"accuracy": 0.93})
    """

    def __init__(
        self,
        title: str = "hybridflow",
        *,
        console: Console | None = None,
        names: MetricNames = DEFAULT_NAMES,
        clock: Callable[[], float] = time.monotonic,
        loud_after_s: float = LOUD_AFTER_S,
    ) -> None:
        self._console = console or Console(file=sys.stdout)
        self._state = DisplayState(title=title, names=names, started_at=clock(), messages=deque(maxlen=5))
        self._clock = clock
        self._loud_after_s = loud_after_s
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._announce_waits, name="display waits", daemon=True)

    def start(self, stage: str, total_steps: int, first_step: int = 0) -> None:
        """Begin a stage (warm-up, RL) of `total_steps` steps of which `first_step` are done: a resumed run has some."""
        with self._lock:
            self._state.enter_stage(stage, total_steps, first_step, self._clock())
        if self._console.is_terminal and self._live is None:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4, transient=False)
            self._live.start()
        if self._live is None:
            resumed = f", resumed after {first_step}" if first_step else ""
            self._say(f"{stage}: {total_steps} steps{resumed}")
        if not self._watch.is_alive() and not self._closed.is_set():
            self._watch.start()

    def phase(self, name: str) -> None:
        """The run enters phase `name`: ROLLOUT, TRAIN, SYNC or EVAL."""
        with self._lock:
            self._state.enter_phase(name, self._clock())

    def progress(self, text: str) -> None:
        """What is going on within the phase; replaces what was said before. A wait that is announced ends with it."""
        with self._lock:
            self._state.progress = text

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step `step` (counted from 0) is done."""
        with self._lock:
            self._state.finish_step(step, metrics, self._clock())
            line = plain_line(self._state, self._clock())
        if self._live is None:
            self._say(line)

    def note(self, text: str) -> None:
        """Something worth telling; the last five stay on screen."""
        with self._lock:
            self._state.messages.append(text)
        if self._live is None:
            self._say(f"note: {text}")

    def close(self) -> None:
        """Leave the last state on screen and stop. Safe to call twice."""
        self._closed.set()
        if self._watch.is_alive():
            self._watch.join()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def summary(self, table: Mapping[str, object]) -> None:
        """The end table: one row per entry, floats with four significant digits."""
        rows = Table(title=self._state.title, show_header=False, title_justify="left")
        for name, value in table.items():
            rows.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
        self._console.print(rows)

    def __enter__(self) -> LiveDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _render(self) -> Table:
        with self._lock:
            return render(self._state, self._clock())

    def _announce_waits(self) -> None:
        """Consumes nothing; wakes each second, and says which phase has been without news for another 30 s."""
        said_at = 0.0
        while not self._closed.wait(min(1.0, self._loud_after_s / 2)):
            with self._lock:
                now, since = self._clock(), self._state.news_at
                phase, step = self._state.phase or "the first phase", self._state.next_step
                progress = self._state.progress
            if now - max(since, said_at) < self._loud_after_s:
                continue
            said_at = now
            text = f"still in {phase} of step {step + 1} after {format_duration(now - since)}"
            text += f": {progress}" if progress else ""
            if self._live is None:
                self._say(text)
            else:
                with self._lock:
                    self._state.messages.append(text)

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)
