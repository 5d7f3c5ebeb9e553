"""The JSONL record survives crashes and resumes; W&B stays offline and silent; a broken service stops no run."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from hybridflow.errors import DataError
from hybridflow.recording import wandb_tracker
from hybridflow.recording.trackers import JsonlTracker, TrackerSet
from hybridflow.recording.wandb_tracker import WandbTracker


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_step_is_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log(0, {"reward/mean": 0.25})
    assert rows(path) == [{"step": 0, "reward/mean": 0.25}]
    tracker.log(1, {"reward/mean": 0.5})
    tracker.close()
    assert [row["step"] for row in rows(path)] == [0, 1]


def test_non_finite_values_stay_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log(0, {"a": float("nan"), "b": float("-inf"), "c": 1.0})
    tracker.close()
    assert rows(path) == [{"step": 0, "a": None, "b": None, "c": 1.0, "non_finite": {"a": "nan", "b": "-inf"}}]


def test_resume_forgets_later_steps_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonlTracker(path)
    for step in range(5):
        first.log(step, {"x": step})
    first.close()
    second = JsonlTracker(path)
    second.truncate_after(2)
    second.log(3, {"x": 30})
    second.close()
    assert rows(path) == [{"step": step, "x": x} for step, x in [(0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0)]]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("half", ['{"step": 2, "x": 1', '{"step": 2', "\ufffd"])
def test_a_half_written_last_line_is_dropped(tmp_path: Path, half: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "x": 1.0}\n{"step": 1, "x": 1.0}\n' + half)
    tracker = JsonlTracker(path)
    tracker.truncate_after(7)
    tracker.log(2, {"x": 9})
    tracker.close()
    assert [row["step"] for row in rows(path)] == [0, 1, 2]


def test_a_whole_line_that_is_no_step_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\nnonsense\n{"step": 1}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: .*nonsense"):
        JsonlTracker(path).truncate_after(5)


def test_wandb_offline_is_silent_and_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The whole life of an offline run with no account. Internet sockets of this process raise; W&B's service is
    a binary that this test cannot watch."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)

    def refuse(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX:
            raise AssertionError(f"connects to {address}")
        real_connect(self, address)

    real_connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)
    tracker = WandbTracker(tmp_path / "run", "test", {"train": {"num_steps": 2}})
    tracker.log(0, {"reward/mean": 0.5})
    tracker.log(1, {"reward/mean": 0.75})
    tracker.close()
    run = (tmp_path / "run").rename(tmp_path / "renamed")  # as a run's folder is
    links = [path for path in run.rglob("*") if path.is_symlink()]
    assert links and [path for path in links if not path.exists()] == []
    again = WandbTracker(run, "test", {"train": {"num_steps": 2}})  # --resume
    again.log(2, {"reward/mean": 1.0})
    again.close()
    runs = list((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert runs and len({run.name for run in runs}) == 1, "one run for W&B"
    assert capfd.readouterr() == ("", "")


class Memory:
    def __init__(self, broken: bool = False) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.broken = broken
        self.closed = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.broken:
            raise OSError("service is down")
        self.rows.append((step, dict(metrics)))

    def close(self) -> None:
        self.closed = True
        if self.broken:
            raise OSError("cannot close")


def test_a_broken_optional_tracker_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    record, service = Memory(), Memory(broken=True)
    trackers = TrackerSet([record], [service])
    trackers.log(0, {"x": 1})
    trackers.log(1, {"x": 2})
    trackers.close()
    assert record.rows == [(0, {"x": 1}), (1, {"x": 2})] and record.closed
    warnings = [entry.getMessage() for entry in caplog.records]
    assert warnings == ["Memory failed at step 0 and is left out: service is down"]


def test_a_broken_required_tracker_is_an_error_and_the_others_close() -> None:
    record, other = Memory(broken=True), Memory()
    trackers = TrackerSet([record, other])
    with pytest.raises(OSError, match="down"):
        trackers.log(0, {})
    with pytest.raises(OSError, match="cannot close"):
        trackers.close()
    assert other.closed


@pytest.mark.parametrize("home", ["/proc", "/proc/nowhere", None])
def test_without_a_home_directory_wandb_keeps_all_in_the_run_folder_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, home: str | None
) -> None:
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("WANDB_CONFIG_DIR", raising=False)
    with caplog.at_level("WARNING", logger="hybridflow"):
        variables = wandb_tracker.own_variables(tmp_path)
    places = {name: variables[name] for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR")}
    assert set(places.values()) == {str(tmp_path / "wandb" / "state")}
    assert (tmp_path / "wandb" / "state").is_dir()
    assert [record.message for record in caplog.records] == [
        f"no home directory that can be written (HOME={home or ''}): W&B keeps its files in the run folder"
    ]


def test_with_one_the_login_and_settings_of_its_user_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", "/elsewhere")
    monkeypatch.delenv("WANDB_CONFIG_DIR", raising=False)
    variables = wandb_tracker.own_variables(tmp_path)
    assert "WANDB_CONFIG_DIR" not in variables
    assert variables["WANDB_CACHE_DIR"] == "/elsewhere"
