"""Spans: one measured stretch of work is one debug log line and one metric, from one context manager."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


@contextmanager
def span(
    name: str, step: int, metrics: dict[str, float] | None = None, *, clock: Callable[[], float] = time.perf_counter
) -> Iterator[None]:
    """Measure the body: adds its seconds to `metrics["time/<name>_s"]` and logs them.

    A span entered twice in a step adds up. The seconds are kept, and the log line says so, when the body raises.
    """
    started = clock()
    outcome = "failed after"
    try:
        yield
        outcome = "took"
    finally:
        seconds = clock() - started
        if metrics is not None:
            key = f"time/{name}_s"
            metrics[key] = metrics.get(key, 0.0) + seconds
        _log.debug("step %d: %s %s %.3f s", step, name, outcome, seconds)
