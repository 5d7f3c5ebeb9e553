"""Checkpoints under `<run>/checkpoints`: written beside, then renamed, so that one that is there is whole.

rl-000010/
    megatron/       weights, optimizer and random state (any layout can load it)
    state.json      RunState: consumption and totals, as of the same moment
"""

from __future__ import annotations

import shutil
from pathlib import Path

from hybridflow.control.state import RunState, read_state, write_state
from hybridflow.errors import CheckpointError
from hybridflow.protocols import Trainer

UNFINISHED = ".unfinished"


class Checkpoints:
    """Saves and finds the checkpoints of one run; keeps the last `keep_last`."""

    def __init__(self, directory: Path, keep_last: int) -> None:
        self._directory = directory
        self._keep_last = keep_last

    def save(self, trainer: Trainer, state: RunState) -> Path:
        """Writes weights, optimizer and state, then makes them the latest in one rename.

        Raises CheckpointError, with the earlier ones untouched, if the disk refuses.
        """
        name = f"rl-{state.rl_step:06d}" if state.rl_step else f"warmup-{state.warmup_stages_done:02d}"
        target = self._directory / name
        unfinished = self._directory / (name + UNFINISHED)
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            (unfinished / "megatron").mkdir(parents=True)
            trainer.save_checkpoint(unfinished / "megatron")
            write_state(state, unfinished / "state.json")
            shutil.rmtree(target, ignore_errors=True)
            unfinished.rename(target)
        except OSError as error:
            raise CheckpointError(
                f"cannot write checkpoint {target}: {error}; earlier checkpoints are untouched. "
                f"Make room and use --resume"
            ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        for old in self.list()[: -self._keep_last]:
            shutil.rmtree(old)
        return target

    def list(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        if not self._directory.is_dir():
            return []
        found = [p for p in self._directory.iterdir() if p.is_dir() and not p.name.endswith(UNFINISHED)]
        return sorted(found, key=lambda path: (path.name.startswith("rl-"), path.name))

    def restore(self, trainer: Trainer) -> RunState:
        """Loads the latest checkpoint into the trainer and returns its state.

        Raises CheckpointError if there is none.
        """
        latest = self.latest()
        state = read_state(latest / "state.json")
        trainer.load_checkpoint(latest / "megatron")
        return state

    def latest(self) -> Path:
        """Folder of the latest checkpoint. Raises CheckpointError if there is none."""
        whole = self.list()
        if not whole:
            raise CheckpointError(f"no checkpoint in {self._directory}: start the run without --resume")
        return whole[-1]
