"""Trackers, to which the metrics of each step go: a JSONL file, the record of the run, and Weights & Biases beside it.

A tracker has `log(step, metrics)` and `close()`. Metric names are `group/name`, values floats.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hybridflow.recording.step_lines import cut, find_end, writing

_log = logging.getLogger(__name__)
_BLOCK_BYTES = 2**16


class Tracker(Protocol):
    """Takes the metrics of each step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonlTracker:
    """One JSON object per step and line, on disk when `log` returns: `{"step": 3, "reward/mean": 0.5}`.

    The file is strict JSON: a NaN or infinite value is null there, and its name is listed under "non_finite".
    A line half written by a crash is removed when the file is opened again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_half_line(path)
        self._stream = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        row: dict[str, Any] = {"step": step}
        row |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        non_finite = {name: str(value) for name, value in values.items() if not math.isfinite(value)}
        if non_finite:
            row["non_finite"] = non_finite
        with writing(self._path):
            self._stream.write(json.dumps(row, allow_nan=False) + "\n")
            self._stream.flush()

    def truncate_after(self, step: int) -> None:
        """Forget the steps after `step`: a run resumed from its checkpoint does them again.

        Raises DataError if a whole line is no step of this file's form.
        """
        end = find_end(self._path, step, kind="metrics of a step")
        self._stream.close()
        cut(self._path, end)
        self._stream = self._path.open("a", encoding="utf-8")

    def close(self) -> None:
        with writing(self._path):
            self._stream.close()


class TrackerSet:
    """Logs to all trackers.

    A `required` tracker that fails stops the run: without its record the run is worth little. An `optional` one that
    fails is left out from then on, and a log line says so: a tracking service that is down must not cost a run.
    """

    def __init__(self, required: Sequence[Tracker], optional: Sequence[Tracker] = ()) -> None:
        self._required = list(required)
        self._optional = list(optional)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for tracker in self._required:
            tracker.log(step, metrics)
        for tracker in list(self._optional):
            try:
                tracker.log(step, metrics)
            except Exception as error:
                self._optional.remove(tracker)
                _log.warning("%s failed at step %d and is left out: %s", type(tracker).__name__, step, error)

    def close(self) -> None:
        """Close all; the first error of a required tracker is raised once every one was asked to close."""
        errors: list[Exception] = []
        for tracker in self._required:
            try:
                tracker.close()
            except Exception as error:
                errors.append(error)
        for tracker in self._optional:
            try:
                tracker.close()
            except Exception as error:
                _log.warning("%s could not close: %s", type(tracker).__name__, error)
        if errors:
            raise errors[0]


def _drop_half_line(path: Path) -> None:
    """Reads back from the end of the file to the last end of a line."""
    if not path.exists():
        return
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK_BYTES)
            file.seek(start)
            if (found := file.read(end - start).rfind(b"\n")) >= 0:
                cut(path, start + found + 1)
                return
            end = start
    cut(path, 0)
