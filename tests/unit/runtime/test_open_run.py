"""How a run that trains begins and how it ends, whatever it trains."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hybridflow.config.load import load_config
from hybridflow.recording.display.live import LiveDisplay
from hybridflow.recording.run_folder.folder import RunFolder
from hybridflow.runtime.open_run import OpenRun, Saved, open_run
from hybridflow.tools.sft_config import SftConfig

ROOT = Path(__file__).parents[3]


class Attempt:
    """A run whose training is given."""

    def __init__(self, runs: Path) -> None:
        chosen = [f"run.directory={runs}", f"model.path={ROOT / 'configs/models/tiny'}", "data.path=none.jsonl"]
        self.config = load_config([ROOT / "configs/sft.toml"], [*chosen, "tracking.wandb=disabled"], SftConfig)
        self.folder = RunFolder(self.config, ("tracking",))
        self.shown = io.StringIO()

    def run(self, train: Any, saved: Saved[int] | None = None) -> None:
        display = LiveDisplay("sft", console=Console(file=self.shown, width=200))
        with open_run(self.config, self.folder, display, (lambda: saved) if saved else None) as opened:  # type: ignore[arg-type]
            trackers = opened.begin_record(self.config.tracking, "sft", saved.state if saved else 0)
            opened.take_name()
            with opened.summarised(
                lambda status, peak_gib: {"status": status}, lambda summary, path: {"ended": summary["status"]}
            ):
                train(opened, trackers)

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.folder.summary.read_text())

    @property
    def steps(self) -> list[int]:
        return [json.loads(line)["step"] for line in self.folder.metrics.read_text().splitlines()]


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Attempt(tmp_path / "runs")


def three_steps(opened: OpenRun[int], trackers: Any) -> None:
    for step in (1, 2, 3):
        trackers.log(step, {"policy/loss": 1.0})


def test_a_finished_run_has_its_summary_and_shows_its_table(attempt: Attempt) -> None:
    attempt.run(three_steps)
    assert attempt.summary["status"] == "finished" and {"version", "host", "command"} <= attempt.summary.keys()
    assert attempt.steps == [1, 2, 3]
    assert "finished" in attempt.shown.getvalue()


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("no"), "failed"), (KeyboardInterrupt(), "interrupted"), (SystemExit(1), "failed")]
)
def test_a_run_that_is_stopped_says_how_and_shows_no_table(attempt: Attempt, error: BaseException, status: str) -> None:
    def train(*_: Any) -> None:
        raise error

    with pytest.raises(type(error)):
        attempt.run(train)
    assert attempt.summary["status"] == status
    assert status not in attempt.shown.getvalue()


def test_a_resumed_run_keeps_the_steps_of_its_checkpoint_and_its_name(attempt: Attempt) -> None:
    attempt.run(three_steps)
    attempt.run(lambda opened, trackers: trackers.log(3, {"policy/loss": 2.0}), Saved(Path("c"), 2, "2 steps"))
    assert attempt.steps == [1, 2, 3]
    assert "resuming from c: 2 steps done" in attempt.shown.getvalue()
    assert not attempt.folder.path.with_name("sft.1").exists()


def test_a_new_run_moves_an_earlier_one_only_when_it_takes_the_name(attempt: Attempt, tmp_path: Path) -> None:
    attempt.run(three_steps)
    with pytest.raises(ValueError, match="no room"):
        display = LiveDisplay("sft", console=Console(file=attempt.shown, width=200))
        with open_run(attempt.config, RunFolder(attempt.config, ()), display, None):
            raise ValueError("no room for its workers")
    assert attempt.summary["status"] == "finished"
    again = Attempt(tmp_path / "runs")
    again.run(lambda *_: None)
    assert "an earlier run of this name is kept as" in again.shown.getvalue()
    assert json.loads((again.folder.path.with_name(f"{again.folder.path.name}.1") / "summary.json").read_text())


def test_weights_are_drawn_once(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Path] = []

    def write_policy(source: str, target: Path, seed: int) -> None:
        drawn.append(target)
        target.mkdir()
        (target / "model.safetensors").touch()

    monkeypatch.setattr("hybridflow.runtime.open_run.write_policy", write_policy)
    model, found = attempt.config.model, []

    def train(opened: OpenRun[int], _: Any) -> None:
        found.extend(opened.first_weights(model.model_copy(update={"init": kind}), 0) for kind in ("seeded", "weights"))
        found.append(opened.first_weights(model, 0))

    attempt.run(train)
    initial = attempt.folder.initial_model
    assert found == [initial, Path(model.path), initial] and drawn == [initial]
