"""A checkpoint is there whole or not at all."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from hybridflow.curriculum.source import SavedSource
from hybridflow.errors import CheckpointError, TrainerError
from hybridflow.loop import checkpoints as module
from hybridflow.loop.checkpoints import Checkpoints, restore
from hybridflow.recording.accuracy import Bounds, EvalResult
from hybridflow.recording.state import GroupCounts, RunState, read_state, write_state
from tests.unit.loop.fakes import FakeTrainer


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_save_and_restore_give_weights_and_state_back(tmp_path: Path) -> None:
    trainer = FakeTrainer([])
    trainer.weights = 7
    state = RunState(rl_step=7, policy_version=7, groups=GroupCounts(started=9, trained=8, filtered={"why": 1}))
    path = Checkpoints(tmp_path, keep_last=2).save(trainer, state)
    assert path == tmp_path / "rl-000007"
    other = FakeTrainer([])
    latest = Checkpoints(tmp_path, keep_last=2).latest()
    assert (latest, read_state(latest / "state.json"), restore(latest, other).groups) == (path, state, [])
    assert other.weights == 7


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    for step in (1, 2, 3, 10):
        checkpoints.save(FakeTrainer([]), RunState(rl_step=step))
    assert [path.name for path in checkpoints.list()] == ["rl-000003", "rl-000010"]
    assert names(tmp_path) == ["rl-000003", "rl-000010"]


def test_warmup_comes_before_rl(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=9)
    checkpoints.save(FakeTrainer([]), RunState(warmup_stages_done=2, rl_step=1))
    for stages in (2, 1):
        checkpoints.save(FakeTrainer([]), RunState(warmup_stages_done=stages))
    assert [path.name for path in checkpoints.list()] == ["warmup-01", "warmup-02", "rl-000001"]
    assert checkpoints.latest().name == "rl-000001"


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), CheckpointError),
        (TrainerError("train worker 1 died"), TrainerError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_save_that_fails_leaves_the_earlier_ones_alone(
    tmp_path: Path, failure: Exception, raised: type[BaseException]
) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    trainer = FakeTrainer([])
    trainer.weights = 1
    checkpoints.save(trainer, RunState(rl_step=1))
    trainer.fail_save, trainer.weights = failure, 2
    with pytest.raises(raised):
        checkpoints.save(trainer, RunState(rl_step=2))
    assert names(tmp_path) == ["rl-000001"], "a part of the failed checkpoint is still on the full disk"
    restore(checkpoints.latest(), trainer)
    assert read_state(checkpoints.latest() / "state.json").rl_step == trainer.weights == 1


def test_a_full_disk_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_state", refuse)
    with pytest.raises(CheckpointError, match=r"No space left on device; earlier checkpoints are untouched.*--resume"):
        Checkpoints(tmp_path, keep_last=1).save(FakeTrainer([]), RunState(rl_step=2))


def test_a_killed_save_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "rl-000002.0badc0de.unfinished" / "megatron").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    with pytest.raises(CheckpointError, match="without --resume"):
        checkpoints.latest()
    checkpoints.save(FakeTrainer([]), RunState(rl_step=2))
    assert names(tmp_path) == ["rl-000002"]


def test_missing_and_broken_state(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="without --resume"):
        Checkpoints(tmp_path / "none", keep_last=1).latest()
    (tmp_path / "state.json").write_text('{"rl_step": "many"}')
    with pytest.raises(CheckpointError, match="not a readable run state"):
        read_state(tmp_path / "state.json")


def test_state_round_trip(tmp_path: Path) -> None:
    state = RunState(
        rl_step=3,
        reward_means=[0.5, None, 1.0],
        evals_before={"test": EvalResult(accuracy=0.25, bounds=Bounds(0.25, 0.25, 0, 4))},
        evals_latest={"test": EvalResult(accuracy=None, bounds=Bounds(0.0, 1.0, 4, 4))},
        source=SavedSource(name="shuffled_epochs", state={"num_taken": 12}),
        phase_seconds={"rollout": 1.5},
    )
    write_state(state, tmp_path / "state.json")
    assert read_state(tmp_path / "state.json") == state


def test_a_state_of_earlier_versions_is_read(tmp_path: Path) -> None:
    """Its evaluations stood in a field each, and it knew no source of prompts: 9 groups begun, 2 of them again."""
    bounds = {"low": 0.2, "high": 0.3, "num_unknown": 1, "num_completions": 10}
    older = {
        "rl_step": 2,
        "groups": {"started": 9, "discarded": 2},
        "eval_before": None,
        "eval_latest": 0.25,
        "eval_bounds_before": None,
        "eval_bounds_latest": bounds,
    }
    (tmp_path / "state.json").write_text(json.dumps(older))
    state = read_state(tmp_path / "state.json")
    result = EvalResult(accuracy=0.25, bounds=Bounds(0.2, 0.3, 1, 10))
    assert (state.evals_before, state.evals_latest) == ({}, {"test": result})
    assert (state.source, state.num_prompts_taken) == (None, 7)
    (tmp_path / "state.json").write_text(json.dumps(older | {"eval_latest": "high"}))
    with pytest.raises(CheckpointError, match="not a readable run state"):
        read_state(tmp_path / "state.json")


@pytest.mark.parametrize(
    ("state", "last"),
    [
        (RunState(warmup_stages_done=2), -1),
        (RunState(warmup_stages_done=2, evals_before={"test": EvalResult(accuracy=0.5, bounds=None)}), 0),
        (RunState(rl_step=4), 4),
    ],
)
def test_records_that_a_resumed_run_keeps(state: RunState, last: int) -> None:
    """Evaluation before RL is done again if the checkpoint does not hold its result."""
    assert state.last_recorded_step == last
