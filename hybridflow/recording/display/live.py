"""The live display of a run.

On a terminal: first a spinner with what is going on, then one panel that shows where the run is (stage, phase, step),
whether it learns (reward), whether it is sound (entropy, logprob gap), how fast each phase is and when the run will
end. Elsewhere (a pipe, a log file, CI): plain lines with the clock, at most one each few seconds for steps. In both, a
phase that goes on for 30 s without news says so. What others wrote is shown without what acts on a terminal.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from hybridflow.observability.log import LOUD_AFTER_S
from hybridflow.observability.visible import visible
from hybridflow.recording.display.state import DEFAULT_NAMES, DisplayState, MetricNames, format_duration, plain_line

PHASES = ("ROLLOUT", "TRAIN", "SYNC", "EVAL")


def render_start(state: DisplayState, now: float, spinner: Spinner) -> Table:
    """Render the panel before the first stage: what was done, what is going on and for how long."""
    start = Table.grid(padding=(0, 1))
    for message in list(state.messages)[:-1]:
        start.add_row("", Text(visible(message), style="dim"))
    present = state.messages[-1] if state.messages else "starting"
    start.add_row(spinner, Text(f"{visible(present)}   {format_duration(now - state.news_at)}"))
    if state.progress:
        start.add_row("", Text(visible(state.progress), style="dim"))
    return start


def render(state: DisplayState, now: float) -> Table:
    """The whole panel; a few lines high, as wide as the terminal allows."""
    panel = Table(
        box=box.ROUNDED, show_header=False, title=Text(visible(state.title)), title_justify="left", expand=True
    )
    panel.add_column(style="dim", no_wrap=True)
    panel.add_column(ratio=1)
    panel.add_row("stage", Text(visible(state.stage), style="bold"))
    panel.add_row("phase", _phases(state, now))
    if state.progress:
        panel.add_row("", Text(visible(state.progress), style="dim"))
    panel.add_row("step", _progress(state))
    for label, value in state.facts().items():
        panel.add_row(label, Text(visible(value)))
    panel.add_row("elapsed", Text(visible(_times(state, now))))
    if state.messages:
        panel.add_row("messages", Text(visible("\n".join(state.messages))))
    return panel


def _phases(state: DisplayState, now: float) -> Text:
    """The four phases in order, the present one marked; a phase of another name stands alone."""
    shown = PHASES if state.phase in PHASES or not state.phase else (*PHASES, state.phase)
    text = Text()
    for name in shown:
        text.append(f" {name} ", style="bold reverse" if name == state.phase else "dim")
    if state.phase:
        text.append(f"  {format_duration(now - state.phase_started_at)}", style="dim")
    return text


def _progress(state: DisplayState) -> Table:
    row = Table.grid(padding=(0, 1), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    bar = ProgressBar(total=max(1, state.total_steps), completed=state.next_step)
    row.add_row(f"{state.next_step}/{state.total_steps}", bar)
    return row


def _times(state: DisplayState, now: float) -> str:
    return f"{format_duration(now - state.started_at)}   eta {state.eta(now)}"


LOADING = "loading the libraries (usually 10 s)"
"""The note of a command before it imports torch and all that builds on it."""
STEP_LINES_S = 5.0
"""Shortest time between two lines of steps where there is no terminal; the first and the last of a stage are told."""


class LiveDisplay:
    """Shows the progress of one run. Calls come from one thread, the driver's.

    display = LiveDisplay("quickstart")
    display.note("starting Ray (usually 5 s)")
    display.plan(["warm-up", "RL"], ends_with_eval=True)
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
        time_of_day: Callable[[], str] = lambda: time.strftime("%H:%M:%S"),
        loud_after_s: float = LOUD_AFTER_S,
    ) -> None:
        self._console = console or Console(file=sys.stdout)
        now = clock()
        self._state = DisplayState(title=title, names=names, started_at=now, news_at=now, messages=deque(maxlen=5))
        self._clock = clock
        self._time_of_day = time_of_day
        self._step_line_at = -math.inf
        self._spinner = Spinner("dots")
        self._loud_after_s = loud_after_s
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._announce_waits, name="display waits", daemon=True)

    def plan(self, stages: Sequence[str], *, ends_with_eval: bool) -> None:
        """The stages of the run in order: what is still to come counts for when it will end."""
        with self._lock:
            self._state.later, self._state.ends_with_eval = list(stages), ends_with_eval

    def start(self, stage: str, total_steps: int, first_step: int = 0) -> None:
        """Begin a stage (warm-up, RL) of `total_steps` steps of which `first_step` are done: a resumed run has some."""
        with self._lock:
            self._state.enter_stage(stage, total_steps, first_step, self._clock())
        self._step_line_at = -math.inf
        self._open()
        if self._live is None:
            done = f", {first_step} done" if first_step else ""
            self._say(f"{stage}: {total_steps} steps{done}")

    def phase(self, name: str) -> None:
        """The run enters phase `name`: ROLLOUT, TRAIN, SYNC or EVAL."""
        with self._lock:
            self._state.enter_phase(name, self._clock())

    def progress(self, text: str) -> None:
        """Show what goes on within the phase, in place of what was said before; an announced wait ends with it."""
        with self._lock:
            self._state.progress = text

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step `step` (counted from 0) is done."""
        with self._lock:
            now = self._clock()
            self._state.finish_step(step, metrics, now)
            line = plain_line(self._state, now)
            is_last = self._state.next_step == self._state.total_steps
        if self._live is None and (is_last or now - self._step_line_at >= STEP_LINES_S):
            self._step_line_at = now
            self._say(line)

    def note(self, text: str) -> None:
        """Something worth telling; the last five stay on screen. Before the first stage: what is going on now."""
        with self._lock:
            self._state.messages.append(text)
            if not self._state.stage:
                self._state.news_at, self._state.progress = self._clock(), ""
        self._open()
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
        rows = Table(title=Text(visible(self._state.title)), show_header=False, title_justify="left")
        for name, value in table.items():
            rows.add_row(name, Text(f"{value:.4g}" if isinstance(value, float) else visible(str(value))))
        self._console.print(rows)

    def __enter__(self) -> LiveDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        """On a terminal the screen; the thread that announces waits."""
        if self._closed.is_set():
            return
        if self._console.is_terminal and self._live is None:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4, transient=False)
            self._live.start()
        if not self._watch.is_alive():
            self._watch.start()

    def _render(self) -> Table:
        with self._lock:
            if self._state.stage:
                return render(self._state, self._clock())
            return render_start(self._state, self._clock(), self._spinner)

    def _announce_waits(self) -> None:
        """Consumes nothing; wakes each second, and says which phase has been without news for another 30 s."""
        said_at = 0.0
        while not self._closed.wait(min(1.0, self._loud_after_s / 2)):
            with self._lock:
                now, since = self._clock(), self._state.news_at
                progress = self._state.progress
                where = f"{self._state.phase or 'the first phase'} of step {self._state.next_step + 1}"
                if not self._state.stage:
                    where = self._state.messages[-1] if self._state.messages else "the start"
            if now - max(since, said_at) < self._loud_after_s:
                continue
            said_at = now
            text = f"still in {where} after {format_duration(now - since)}"
            text += f": {progress}" if progress else ""
            if self._live is None:
                self._say(text)
            else:
                with self._lock:
                    if self._state.stage:
                        self._state.messages.append(text)
                    else:
                        self._state.progress = text

    def _say(self, line: str) -> None:
        self._console.print(f"{self._time_of_day()} {visible(line)}", soft_wrap=True, highlight=False, markup=False)
