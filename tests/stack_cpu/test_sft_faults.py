"""`hybridflow sft` on TP2 is interrupted, resumed, loses a worker, is resumed again and finishes; the same run is done
without interruption, which renames the first.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridflow.cluster.watchdog import END_AFTER_S
from tests.stack_cpu.command import read_lines, without_times
from tests.stack_cpu.sft_command import Ended, end_with, run, saved_steps, sft_arguments

pytestmark = [pytest.mark.full, pytest.mark.stack_cpu, pytest.mark.timeout(600)]

MANY_STEPS = 100_000


@dataclass(frozen=True)
class Story:
    """The runs that the chain has left."""

    interrupted: Ended
    killed: Ended
    resumed: Path
    """Folder of the run that was stopped twice."""
    straight: Path
    """Folder of the same run, never stopped."""
    said: str
    """Output of the straight run."""


@pytest.fixture(scope="module")
def story(sft_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    directory = tmp_path_factory.mktemp("sft")
    folder = directory / "sft"

    def arguments(num_steps: int, wandb: str = "disabled") -> list[str]:
        return sft_arguments(directory, sft_data, num_steps, **{"tracking.wandb": wandb})

    interrupted = end_with(
        lambda process, _: os.killpg(process.pid, signal.SIGINT), arguments(MANY_STEPS, "offline"), folder
    )
    killed = end_with(lambda _, victim: os.kill(victim, signal.SIGKILL), [*arguments(MANY_STEPS), "--resume"], folder)
    num_steps = saved_steps(folder)[-1] + 3
    run(*arguments(num_steps), "--resume", log=directory / "output.txt")
    said = run(*arguments(num_steps), log=directory / "output.txt")
    return Story(interrupted, killed, directory / "sft.1", folder, said)


def test_interrupt_ends_everything_within_ten_seconds(story: Story) -> None:
    ended = story.interrupted
    assert (ended.code, ended.left_behind, ended.status) == (130, [], "interrupted")
    assert "interrupted; --resume continues from the last checkpoint" in ended.output
    assert "Traceback" not in ended.output


def test_a_killed_worker_is_named(story: Story) -> None:
    ended = story.killed
    assert (ended.code, ended.left_behind, ended.status) == (1, [], "failed")
    assert "error: TrainerError\ntrain worker" in ended.output and f"(process {ended.victim}) died" in ended.output
    assert "sft/logs/train-" in ended.output and "--resume continues from the last checkpoint" in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.faults
def test_a_stopped_worker_is_named_and_ends_the_run(sft_data: Path, tmp_path: Path) -> None:
    limits = {f"cluster.stall.{phase}_s": 5 for phase in ("warmup", "checkpoint")}
    ended = end_with(
        lambda _, victim: os.kill(victim, signal.SIGSTOP),
        sft_arguments(tmp_path, sft_data, MANY_STEPS, **limits),
        tmp_path / "sft",
        within_s=5 + END_AFTER_S + 30,
    )
    assert (ended.code, ended.left_behind, ended.status) == (1, [], "failed")
    assert "error: StalledError\nno sign of life in" in ended.output and "--resume continues" in ended.output
    assert f"(process {ended.victim})" in ended.output and "it is stopped (kill -CONT lets it go on)" in ended.output
    assert "Traceback" not in ended.output
    assert "train worker" in (tmp_path / "sft/logs/stacks.log").read_text()


def test_a_resumed_run_equals_one_that_was_never_stopped(story: Story) -> None:
    """Bit by bit, with no step skipped or done twice."""
    stopped, straight = (read_lines(folder / "metrics.jsonl") for folder in (story.resumed, story.straight))
    assert [line["step"] for line in stopped] == list(range(1, len(stopped) + 1))
    assert without_times(stopped) == without_times(straight)
    resumed, whole = (load_file(folder / "hf" / "model.safetensors") for folder in (story.resumed, story.straight))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_the_earlier_run_is_renamed(story: Story) -> None:
    assert f"an earlier run of this name is kept as {story.resumed}" in story.said
    assert list((story.resumed / "wandb").glob("offline-run-*/*.wandb"))
