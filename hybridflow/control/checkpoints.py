"""Checkpoints of a training run: `warmup-01`, ..., then `rl-000010`, ..., each with the RunState of its moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hybridflow.control.partial_rollouts import read_partial_groups, write_partial_groups
from hybridflow.protocols import Trainer
from hybridflow.recording.state import RunState, read_state, write_state
from hybridflow.run_folder.checkpoints import STATE_FILE, WEIGHTS_FOLDER, CheckpointFolder
from hybridflow.types import PartialGroup


class Checkpoints:
    """Saves and finds the checkpoints of one run; keeps the last `keep_last`. Errors as in CheckpointFolder."""

    def __init__(self, directory: Path, keep_last: int, in_background: bool = False) -> None:
        self._folder = CheckpointFolder(directory, keep_last, in_background, age=_age)
        self.finish = self._folder.finish
        self.list = self._folder.list
        self.latest = self._folder.latest

    def save(self, trainer: Trainer, state: RunState, partial_groups: Sequence[PartialGroup] = ()) -> Path:
        """Writes weights, optimizer, state and partial groups; see `CheckpointFolder.save`."""

        def write(path: Path) -> None:
            write_state(state, path)
            write_partial_groups(partial_groups, path.parent)

        name = f"rl-{state.rl_step:06d}" if state.rl_step else f"warmup-{state.warmup_stages_done:02d}"
        return self._folder.save(trainer, name, write)

    def restore(self, trainer: Trainer) -> tuple[RunState, list[PartialGroup]]:
        """Loads the latest checkpoint into the trainer; its state and partial groups. CheckpointError if none."""
        latest = self.latest()
        state, partial_groups = read_state(latest / STATE_FILE), read_partial_groups(latest)
        trainer.load_checkpoint(latest / WEIGHTS_FOLDER)
        return state, partial_groups


def _age(name: str) -> tuple[bool, str]:
    return name.startswith("rl-"), name
