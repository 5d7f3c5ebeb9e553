"""Logs of every process in one shape (time, level, role and rank, step, message), and what workers print.

    12:00:01 INFO  train[1] step 7 | policy update took 3.2 s

`configure` is called once by the process that plays a role; modules then use `logging.getLogger(__name__)` as usual.

What a worker process prints, its children's output included, is kept in the run folder.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from hybridflow.observability.visible import visible


def redirect_output(path: Path) -> None:
    """Appends stdout and stderr of this process, and of every process it starts from now on, to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


FORMAT = "%(asctime)s %(levelname)-5s %(role)s%(rank)s%(step)s | %(message)s"
OWN_LOGGERS = ("hybridflow", "megatron_ext")
LOUD_AFTER_S = 30.0
"""A wait longer than this says what it waits for, and again each time as much has passed."""


class _Fields(logging.Filter):
    """Puts role, rank and step into each record."""

    def __init__(self, role: str, rank: int | None) -> None:
        super().__init__()
        self._role = role
        self._rank = "" if rank is None else f"[{rank}]"
        self.step: int | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        record.role, record.rank = self._role, self._rank
        record.step = "" if self.step is None else f" step {self.step}"
        return True


class _CurrentStderr(logging.Handler):
    """Writes to what `sys.stderr` is at the time: the live display replaces it while it is on screen."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(visible(self.format(record)) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


_fields: _Fields | None = None


def configure(role: str, level: str = "INFO", *, rank: int | None = None) -> None:
    """Send this process's own logs to stderr under `role`; calling it again replaces role and level.

    Other libraries' loggers are left alone. Raises ValueError for a level that logging does not know.
    """
    global _fields
    _fields = _Fields(role, rank)
    handler = _CurrentStderr()
    handler.addFilter(_fields)
    handler.setFormatter(logging.Formatter(FORMAT, datefmt="%H:%M:%S"))
    for name in OWN_LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(level.upper())
        logger.handlers = [handler]
        logger.propagate = False


def set_step(step: int | None) -> None:
    """Name `step` in all following log lines of this process; None names none."""
    if _fields is not None:
        _fields.step = step
