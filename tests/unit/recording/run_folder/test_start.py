"""A start touches an earlier run only when there is something new to keep; what ended a run says how it goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pytest

from hybridflow.errors import ConfigError, TrainerError, notes_of
from hybridflow.recording.run_folder.finished import read_finished
from hybridflow.recording.run_folder.next_command import go_on, this_command
from hybridflow.recording.run_folder.summary_file import describe_process
from hybridflow.recording.run_folder.train_folder import TrainFolder
from megatron_ext.checkpoint import commit
from tests.unit.loop.fakes import build_config

ROOT = Path(__file__).parents[4]


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that is there, with a checkpoint."""
    monkeypatch.setattr(sys, "argv", ["/nowhere/hybridflow", "train", "--config", "my file.toml"])
    run = tmp_path / "quickstart"
    checkpoint = run / "checkpoints" / "rl-000010"
    checkpoint.mkdir(parents=True)
    commit.write_manifest(checkpoint, files={}, description={})
    return run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TrainerError("train worker 1 failed")])
def test_a_start_that_fails_leaves_the_earlier_run_and_its_own_logs(
    good: Path, tmp_path: Path, error: BaseException
) -> None:
    config = build_config(tmp_path)
    folder = TrainFolder(config)

    with pytest.raises(type(error)) as caught, folder.held():
        folder.create(config)
        folder.logs.mkdir()
        (folder.logs / "train-1.log").write_text("why")
        raise error

    assert names(tmp_path) == [".quickstart.starting", "quickstart"]
    assert names(good) == ["checkpoints"]
    (note,) = notes_of(caught.value)
    assert f"The earlier run in {good} is as it was. What its workers wrote until then is in" in note
    assert note.endswith("/nowhere/hybridflow train --config 'my file.toml'")
    assert (tmp_path / ".quickstart.starting/logs/train-1.log").read_text() == "why"


def test_what_an_earlier_start_left_is_gone_with_the_next(good: Path, tmp_path: Path) -> None:
    config = build_config(tmp_path)
    for _ in range(2):  # a start that was killed, before and after it had its name
        TrainFolder(config).create(config)
        (tmp_path / ".quickstart.starting/left").write_text("")
        folder = TrainFolder(config)
        folder.create(config)
        folder.keep()
    with folder.held():
        folder.create(config)
        assert names(folder.path) == ["resolved.json"]
        folder.keep()
        folder.metrics.write_text("new")
        assert (tmp_path / ".quickstart.starting/metrics.jsonl").read_text() == "new"  # for who knows only that name
    assert names(tmp_path) == ["quickstart", "quickstart.1", "quickstart.2", "quickstart.3"]
    assert names(tmp_path / "quickstart.1") == ["checkpoints"]


@pytest.mark.parametrize(("is_kept", "left"), [(True, "quickstart"), (False, ".quickstart.starting")])
def test_an_error_names_a_log_where_the_user_finds_it(tmp_path: Path, is_kept: bool, left: str) -> None:
    """Workers know the path that the run was begun under."""
    folder = TrainFolder(build_config(tmp_path))
    with pytest.raises(TrainerError) as caught, folder.held():
        folder.create(build_config(tmp_path))
        folder.logs.mkdir()
        log = folder.logs / "train-0.log"
        log.write_text("why")
        if is_kept:
            folder.keep()
        raise TrainerError(f"train worker 0 died. Its log is {log}")

    found = tmp_path / left / "logs/train-0.log"
    assert str(caught.value) == f"train worker 0 died. Its log is {found}"
    assert found.read_text() == "why"


def test_a_run_that_ends_says_where_it_goes_on_from(good: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainerError) as caught, TrainFolder(build_config(tmp_path)).held():
        raise TrainerError("train worker 1 died")

    assert notes_of(caught.value) == [
        f"--resume continues from the last checkpoint, {good}/checkpoints/rl-000010:\n"
        "    /nowhere/hybridflow train --config 'my file.toml' --resume"
    ]


def test_nobody_else_works_on_the_run_meanwhile(tmp_path: Path) -> None:
    config = build_config(tmp_path)
    with TrainFolder(config).held():
        with pytest.raises(ConfigError, match="has been working on the run"):
            TrainFolder(config).refuse_second_driver()
        with TrainFolder(build_config(tmp_path, run__name="other")).held():
            pass


def test_the_command_is_what_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "bin" / "hybridflow"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "/usr/bin")
    assert this_command([str(program), "train"]) == ["bin/hybridflow", "train"]
    monkeypatch.setenv("PATH", str(program.parent))
    assert this_command([str(program), "train"]) == ["hybridflow", "train"]
    assert this_command(["/x/hybridflow/cli.py", "sft"]) == [sys.executable, "-m", "hybridflow.cli", "sft"]
    resumed = go_on(Path("runs/a"), Path("runs/a/checkpoints/rl-000010"), [str(program), "train", "--resume"])
    assert resumed.endswith("\n    hybridflow train --resume")
    assert go_on(Path("runs/a"), None, [str(program), "train", "--resume"]).endswith("\n    hybridflow train")


@pytest.mark.parametrize(
    ("summary", "num_steps", "is_finished"),
    [
        ('{"status": "finished", "num_steps": 3}', 3, True),
        ('{"status": "finished, nothing learnt", "num_steps": 3}', 3, True),
        ('{"status": "finished", "num_steps": 3}', 4, False),
        ('{"status": "interrupted", "num_steps": 3}', 3, False),
        ('{"status": "finished", "num_steps": 3, "total_steps": 3}', None, True),
        ('{"status": "finished", "num_steps": 3}', None, False),
        ('{"status": "finished"}', 3, False),
        ('{"status":', 3, False),
        ("[]", 3, False),
        (None, 3, False),
    ],
)
def test_a_finished_run_is_known_from_its_summary(
    tmp_path: Path, summary: str | None, num_steps: int | None, is_finished: bool
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("")
    if summary is not None:
        (tmp_path / "summary.json").write_text(summary)

    assert (read_finished(tmp_path / "summary.json", tmp_path, num_steps) is not None) == is_finished

    (tmp_path / "model.safetensors").unlink()  # the export is missing: it is done again
    assert read_finished(tmp_path / "summary.json", tmp_path, num_steps) is None


def test_the_summary_says_what_produced_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/nowhere/hybridflow", "train", "--set", "run.name=my run"])
    before = datetime.now().astimezone()

    described = describe_process()

    assert described["version"] == version("hybridflow")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert (described["commit"] or "").partition("+")[0] == head
    assert described["host"] == os.uname().nodename
    assert datetime.fromisoformat(described["started"]) <= before
    assert described["command"] == "/nowhere/hybridflow train --set 'run.name=my run'"
