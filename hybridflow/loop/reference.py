"""The reference policy of a run: taken once, as RL begins, kept in the run folder, and read from there on a resume.

<run>/reference/     a Hugging Face directory in the dtype of training, with a manifest of sizes and checksums

So it is the same to the bit before and after a stop, also where the directory that it came from has changed since.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from hybridflow.config.regularisation_sections import KLSection
from hybridflow.errors import CheckpointError, WorkerError
from hybridflow.protocols import ReferenceTrainer
from hybridflow.recording.run_folder.disk import is_full
from megatron_ext.checkpoint import commit
from megatron_ext.checkpoint.commit import BrokenCheckpointError


def keep_reference(trainer: ReferenceTrainer, section: KLSection, folder: Path, *, has_begun: bool) -> None:
    """Gives the trainer its reference, and `folder` a copy of it; once RL `has_begun` it is read from there.

    Raises CheckpointError where the folder is damaged, or the disk refuses.
    """
    if has_begun:
        trainer.keep_reference(folder, verified=True)
        return
    trainer.keep_reference(None if section.reference_folder is None else Path(section.reference_folder))
    unfinished: Path | None = None
    try:
        unfinished = commit.begin(folder)
        trainer.save_reference(unfinished)
        files = commit.measure_files(unfinished, commit.list_files(unfinished))
        commit.commit(unfinished, folder, files=files, description={})
    except (OSError, WorkerError) as error:
        if isinstance(error, WorkerError) and not is_full(folder.parent):
            raise
        told = error if isinstance(error, OSError) else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise CheckpointError(f"cannot write the reference {folder}: {told}. Make room and use --resume") from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def check_reference(folder: Path) -> None:
    """Raises CheckpointError unless the reference of a run that has begun is there and whole, by its files' sizes.

    Their content is checked where it is read.
    """
    try:
        commit.check_sizes(folder)
    except BrokenCheckpointError as error:
        raise CheckpointError(
            f"{error}. It holds the reference of algorithm.kl, without which the run cannot go on as it was. Remedy: "
            f"restore {folder} from a copy, or start another run with --set run.name=<another>"
        ) from error
