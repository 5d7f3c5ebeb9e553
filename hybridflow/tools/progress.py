"""Progress of a command, for its user, on standard error."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hybridflow.observability.visible import visible

QUIET_S = 10.0
"""Longest time between two progress lines where there is no terminal."""


def note(text: str) -> None:
    """One line."""
    print(visible(text), file=sys.stderr, flush=True)


class RowProgress:
    """A bar on a terminal, else a line with the clock each few seconds."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console) if console.is_terminal else None
        self._task = self._bar.add_task("rows", total=None) if self._bar else None
        self._last_line = 0.0

    def __call__(self, done: int, total: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif done == total or time.monotonic() - self._last_line > QUIET_S:
            self._last_line = time.monotonic()
            note(f"{time.strftime('%H:%M:%S')} rows {done}/{total}")

    def note(self, text: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.console.print(visible(text), highlight=False, markup=False, soft_wrap=True)
        else:
            note(text)

    def __enter__(self) -> RowProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
