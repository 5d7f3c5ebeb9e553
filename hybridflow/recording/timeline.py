"""Timeline of a step: when each part of it began and ended, on one clock; a line of timeline.jsonl.

rollout |------------------------------|
decode   |-------------------------|          engines at work, from the first request to their report
score       |-------------------------|       from the first completion that arrived to the last verdict
train                                  |-----|
sync                                          |---|
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from hybridflow.recording.step_lines import cut, find_end, writing

Mark = Literal["decode_begin", "completion", "verdict", "decode_end"]
Span = tuple[float, float]
"""Begin and end, in seconds from the begin of the step."""


class Timeline:
    """The spans of the step under way. Marks may come from any thread; all else is called by the loop.

    Args:
        clock: Seconds of a clock that never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._zero = clock()
        self._spans: dict[str, Span] = {}
        self._marks: dict[Mark, float] = {}

    def begin_step(self) -> None:
        """Begins the next step: what comes from here on belongs to it."""
        self._zero = self._clock()
        self._spans = {}

    def mark(self, what: Mark) -> None:
        """Notes that something happened now; of completions the first counts, of verdicts the last."""
        if what == "decode_begin":
            self._marks.clear()
        if what != "completion" or what not in self._marks:
            self._marks[what] = self._clock()

    def add(self, name: str, began: float, ended: float) -> None:
        """A phase, by the clock."""
        self._spans[name] = (began - self._zero, ended - self._zero)

    def add_collected(self) -> dict[str, float]:
        """Adds the spans of decoding and scoring, where both were marked; seconds by name."""
        marks = self._marks
        if not {"decode_begin", "decode_end", "verdict"} <= marks.keys():
            return {}
        began = min(marks.get("completion", marks["verdict"]), marks["verdict"])
        self.add("decode", marks["decode_begin"], marks["decode_end"])
        self.add("score", began, marks["verdict"])
        return {name: self._spans[name][1] - self._spans[name][0] for name in ("decode", "score")}

    def finish_step(self) -> dict[str, Span]:
        """Returns the spans of the step; `step` is the whole."""
        return self._spans | {"step": (0.0, self._clock() - self._zero)}


def compute_overlap(spans: dict[str, Span]) -> float | None:
    """Share of the scoring that went on while engines decoded; None where nothing was scored."""
    if "decode" not in spans or "score" not in spans:
        return None
    (_, decode_ended), (began, ended) = spans["decode"], spans["score"]
    return max(0.0, min(decode_ended, ended) - began) / (ended - began) if ended > began else 1.0


class TimelineRecord:
    """timeline.jsonl: {"step": 3, "spans": {"rollout": [0.0, 2.1], "decode": [0.01, 1.9], ...}}"""

    def __init__(self, path: Path) -> None:
        self._path = path

    def truncate_after(self, step: int) -> None:
        """Drops the lines of later steps. Raises DataError, with the file as it is, if a whole line is no timeline."""
        cut(self._path, find_end(self._path, step, kind="the timeline of a step"))

    def append(self, step: int, spans: dict[str, Span]) -> None:
        rounded = {name: [round(began, 4), round(ended, 4)] for name, (began, ended) in spans.items()}
        with writing(self._path), self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, "spans": rounded}) + "\n")
