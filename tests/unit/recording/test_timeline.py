"""The spans of a step: by hand with a clock that the test moves, and in the loop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybridflow.loop.train_loop import train
from hybridflow.recording.timeline import Span, Timeline, TimelineRecord, compute_overlap
from tests.unit.loop.fakes import FakeSystem, build_config, read_lines


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_decoding_and_scoring_lie_side_by_side_in_the_step() -> None:
    """Decoding from 1 to 9; completions arrive at 2 and 5, verdicts come at 4 and 10."""
    clock = Clock()
    timeline = Timeline(clock)
    clock.now = 200.0
    timeline.begin_step()
    for at, mark in [
        *[(201.0, "decode_begin"), (202.0, "completion"), (204.0, "verdict"), (205.0, "completion")],
        *[(209.0, "decode_end"), (210.0, "verdict")],
    ]:
        clock.now = at
        timeline.mark(mark)  # pyright: ignore[reportArgumentType]
    assert timeline.add_collected() == {"decode": 8.0, "score": 8.0}
    timeline.add("rollout", 200.5, 210.5)
    clock.now = 212.0
    spans = timeline.finish_step()
    assert spans == {"decode": (1.0, 9.0), "score": (2.0, 10.0), "rollout": (0.5, 10.5), "step": (0.0, 12.0)}
    assert compute_overlap(spans) == 7.0 / 8.0


@pytest.mark.parametrize(
    ("spans", "overlap"),
    [
        ({"decode": (0.0, 4.0), "score": (1.0, 3.0)}, 1.0),
        ({"decode": (0.0, 4.0), "score": (4.0, 8.0)}, 0.0),
        ({"decode": (0.0, 4.0), "score": (5.0, 8.0)}, 0.0),
        ({"decode": (0.0, 4.0), "score": (4.0, 4.0)}, 1.0),
        ({"decode": (0.0, 4.0)}, None),
    ],
)
def test_overlap_is_the_share_of_scoring_while_decoding(spans: dict[str, Span], overlap: float | None) -> None:
    assert compute_overlap(spans) == overlap


def test_marks_of_an_evaluation_do_not_reach_the_next_step() -> None:
    clock = Clock()
    timeline = Timeline(clock)
    for mark in ("decode_begin", "completion", "verdict", "decode_end"):
        timeline.mark(mark)  # pyright: ignore[reportArgumentType]
    timeline.begin_step()
    timeline.mark("decode_begin")
    assert timeline.add_collected() == {}


def test_a_record_is_one_line_a_step(tmp_path: Path) -> None:
    record = TimelineRecord(tmp_path / "timeline.jsonl")
    record.append(1, {"decode": (0.0, 1.23456)})
    record.append(2, {"decode": (0.5, 1.0)})
    lines = [json.loads(line) for line in (tmp_path / "timeline.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "spans": {"decode": [0.0, 1.2346]}},
        {"step": 2, "spans": {"decode": [0.5, 1.0]}},
    ]


def test_a_run_records_the_spans_of_each_step(tmp_path: Path) -> None:
    system = FakeSystem(build_config(tmp_path, train__num_steps=2))
    train(system.run)
    lines = read_lines(system.folder.timeline)
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        spans = line["spans"]
        assert spans.keys() == {"rollout", "decode", "score", "train", "sync", "step"}
        assert spans["rollout"][0] <= spans["decode"][0] <= spans["decode"][1] <= spans["rollout"][1]
        assert spans["rollout"][0] <= spans["score"][0] <= spans["score"][1] <= spans["rollout"][1]
        assert spans["rollout"][1] <= spans["train"][0] <= spans["train"][1] <= spans["sync"][0]
        assert spans["sync"][1] <= spans["step"][1]
    seconds = system.run.state.phase_seconds
    assert seconds["decode"] == pytest.approx(sum(_length(line["spans"]["decode"]) for line in lines), abs=1e-3)
    step = next(line for line in system.metrics() if "groups/started" in line)
    assert {"time/decode_s", "time/score_s", "time/step_s", "perf/score_overlap"} <= step.keys()


def _length(span: list[float]) -> float:
    return span[1] - span[0]
