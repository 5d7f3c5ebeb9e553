"""Checkpoints of a training run: `warmup-01`, ..., then `rl-000010`, ..., each with the RunState of its moment."""

from __future__ import annotations

from pathlib import Path

from hybridflow.control.state import RunState, read_state, write_state
from hybridflow.protocols import Trainer
from hybridflow.run_folder.checkpoints import STATE_FILE, WEIGHTS_FOLDER, CheckpointFolder


class Checkpoints:
    """Saves and finds the checkpoints of one run; keeps the last `keep_last`. Errors as in CheckpointFolder."""

    def __init__(self, directory: Path, keep_last: int, in_background: bool = False) -> None:
        self._folder = CheckpointFolder(directory, keep_last, in_background, age=_age)
        self.finish = self._folder.finish
        self.list = self._folder.list
        self.latest = self._folder.latest

    def save(self, trainer: Trainer, state: RunState) -> Path:
        """Writes weights, optimizer and state; see `CheckpointFolder.save`."""
        name = f"rl-{state.rl_step:06d}" if state.rl_step else f"warmup-{state.warmup_stages_done:02d}"
        return self._folder.save(trainer, name, lambda path: write_state(state, path))

    def restore(self, trainer: Trainer) -> RunState:
        """Loads the latest checkpoint into the trainer and returns its state. CheckpointError if there is none."""
        latest = self.latest()
        state = read_state(latest / STATE_FILE)
        trainer.load_checkpoint(latest / WEIGHTS_FOLDER)
        return state


def _age(name: str) -> tuple[bool, str]:
    return name.startswith("rl-"), name
