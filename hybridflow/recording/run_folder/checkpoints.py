"""Checkpoints of a run: written beside, then renamed, so that one that is there is whole.

<run>/checkpoints/<name>/
    megatron/       weights, optimizer and random state (any layout can load it), with a manifest of its own
    state.json      what the run remembers, as of the same moment
    manifest.json   sizes and checksums; see megatron_ext/checkpoint/commit.py
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hybridflow.errors import CheckpointError, WorkerError
from hybridflow.protocols import CheckpointWriter
from hybridflow.recording.run_folder.disk import is_full
from megatron_ext.checkpoint import commit
from megatron_ext.checkpoint.commit import BrokenCheckpointError

WEIGHTS_FOLDER = "megatron"
STATE_FILE = "state.json"


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that train workers are still writing."""

    folder: Path
    target: Path


class CheckpointFolder:
    """Saves and finds the checkpoints of one run; keeps the last `keep_last`."""

    def __init__(
        self,
        directory: Path,
        keep_last: int,
        in_background: bool = False,
        age: Callable[[str], Any] = str,
    ) -> None:
        """`age` of a checkpoint's name gives what sorts the older before the newer."""
        self._directory = directory
        self._keep_last = keep_last
        self._in_background = in_background
        self._age = age
        self._pending: _Pending | None = None

    def save(self, trainer: CheckpointWriter, name: str, write_state: Callable[[Path], None]) -> Path:
        """Writes weights, optimizer and, with `write_state`, state.json; makes them the latest in one rename.

        In the background that happens in `finish`, which the next `save` calls first. Raises CheckpointError, with the
        earlier ones untouched, if the disk refuses.
        """
        self.finish(trainer)
        target = self._directory / name
        folder: Path | None = None
        try:
            folder = commit.begin(target)
            write_state(folder / STATE_FILE)
            trainer.save_checkpoint(folder / WEIGHTS_FOLDER, background=self._in_background)
            self._pending = _Pending(folder, target)
        except OSError as error:
            self._give_up(error, target)
        except WorkerError:
            if is_full(self._directory):  # before what was written of this one is removed
                self._give_up(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), target)
            raise
        finally:
            if self._pending is None and folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        if not self._in_background:
            self.finish(trainer)
        return target

    def finish(self, trainer: CheckpointWriter) -> None:
        """Waits for the checkpoint that is being written in the background, if one is, and makes it the latest."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            if self._in_background:
                trainer.finish_checkpoint()
            files = commit.measure_files(pending.folder, commit.list_files(pending.folder))
            commit.commit(pending.folder, pending.target, files=files, description={})
        except OSError as error:
            self._give_up(error, pending.target)
        except WorkerError:
            if is_full(self._directory):
                self._give_up(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), pending.target)
            raise
        finally:
            shutil.rmtree(pending.folder, ignore_errors=True)
        commit.keep_last(self.list(), self._keep_last)

    def _give_up(self, error: OSError, target: Path) -> NoReturn:
        raise CheckpointError(
            f"cannot write checkpoint {target}: {error}; earlier checkpoints are untouched. Make room and use --resume"
        ) from error

    def list(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(commit.list_committed(self._directory), key=lambda path: self._age(path.name))

    def latest(self) -> Path:
        """Folder of the latest checkpoint. Raises CheckpointError if there is none, or if a file of it is damaged."""
        whole = self.list()
        if not whole:
            raise CheckpointError(f"no checkpoint in {self._directory}: start the run without --resume")
        try:
            commit.check_sizes(whole[-1])
            commit.check_contents(whole[-1])  # of state.json; the workers read their own share of megatron/
        except BrokenCheckpointError as error:
            raise CheckpointError(str(error)) from error
        return whole[-1]
