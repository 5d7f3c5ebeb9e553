"""Checkpoints of a training run: `warmup-01`, ..., then `rl-000010`, ..., each with the RunState of its moment."""

from __future__ import annotations

from pathlib import Path

from hybridflow.loop.kept_groups import GroupStore, KeptGroups
from hybridflow.protocols import CheckpointReader, CheckpointWriter
from hybridflow.recording.run_folder.checkpoints import WEIGHTS_FOLDER, CheckpointFolder
from hybridflow.recording.state import RunState, write_state


class Checkpoints:
    """Saves and finds the checkpoints of one run; keeps the last `keep_last`. Errors as in CheckpointFolder."""

    def __init__(self, directory: Path, keep_last: int, in_background: bool = False) -> None:
        self._folder = CheckpointFolder(directory, keep_last, in_background, age=_age)
        self.finish = self._folder.finish
        self.list = self._folder.list
        self.latest = self._folder.latest

    def save(self, trainer: CheckpointWriter, state: RunState, kept: GroupStore | None = None) -> Path:
        """Writes weights, optimizer, state and the groups that were kept; see `CheckpointFolder.save`."""

        def write(path: Path) -> None:
            write_state(state, path)
            if kept is not None:
                kept.save(path.parent)

        name = f"rl-{state.rl_step:06d}" if state.rl_step else f"warmup-{state.warmup_stages_done:02d}"
        return self._folder.save(trainer, name, write)


def restore(checkpoint: Path, trainer: CheckpointReader) -> KeptGroups:
    """Loads weights and optimizer into the trainer; returns the groups that were kept. CheckpointError if broken."""
    kept = KeptGroups.load(checkpoint)
    trainer.load_checkpoint(checkpoint / WEIGHTS_FOLDER)
    return kept


def _age(name: str) -> tuple[bool, str]:
    return name.startswith("rl-"), name
