"""`hybridflow export`: the weights of a checkpoint as a Hugging Face directory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from hybridflow.config.sections import WorkerSection
from hybridflow.errors import CheckpointError, ConfigError
from hybridflow.tools.session import open_policy
from hybridflow.trainer.group import PolicySettings
from hybridflow.trainer.layout import check_model_layout
from megatron_ext import commit
from megatron_ext.commit import BrokenCheckpointError

WEIGHTS_FOLDER = "megatron"
HF_FOLDER = "hf"


def export_checkpoint(
    checkpoint: Path, output: Path, worker: WorkerSection, *, overwrite: bool, note: Callable[[str], None]
) -> None:
    """Writes `output`, from a checkpoint saved at any layout.

    `checkpoint` is a folder under `<run>/checkpoints`, or the `megatron` folder in it. Raises CheckpointError for one
    that is damaged, ConfigError for an output that is there already; both before any worker starts.
    """
    folder = find_weights(checkpoint)
    if not overwrite and output.is_dir() and any(output.iterdir()):
        raise ConfigError(f"--output {output} is not empty. Name another folder, or give --overwrite")
    dtype = commit.read_manifest(folder).description["dtype"]
    check_model_layout(str(folder / HF_FOLDER), worker.layout)
    settings = PolicySettings(worker, dtype, seed=0, optimizer=None, load_weights=False)
    with tempfile.TemporaryDirectory(prefix="hybridflow-export-") as logs:
        note(f"opening {folder} on {worker.layout.world_size} worker(s)")
        with open_policy(settings, folder / HF_FOLDER, Path(logs)) as group:
            note("checking and loading")
            group.load_checkpoint(folder)
            note(f"writing {output}")
            group.save_hf(output)


def find_weights(checkpoint: Path) -> Path:
    """The folder that Megatron's files are in. Raises CheckpointError if there is none, or a file has a wrong size."""
    folder = checkpoint / WEIGHTS_FOLDER if (checkpoint / WEIGHTS_FOLDER).is_dir() else checkpoint
    if not ((folder / HF_FOLDER).is_dir() and (folder / commit.MANIFEST_NAME).is_file()):
        nearby = sorted(str(path) for path in checkpoint.glob(f"**/{WEIGHTS_FOLDER}") if (path / HF_FOLDER).is_dir())
        hint = f". Checkpoints below it: {', '.join(nearby[-3:])}" if nearby else ""
        raise CheckpointError(
            f"--checkpoint {checkpoint} is no checkpoint: it has no {WEIGHTS_FOLDER}/{commit.MANIFEST_NAME}. "
            f"Name a folder under <run>/checkpoints{hint}"
        )
    try:
        commit.check_sizes(checkpoint)
        commit.check_sizes(folder)
    except BrokenCheckpointError as error:
        raise CheckpointError(str(error)) from error
    return folder
