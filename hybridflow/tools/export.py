"""`hybridflow export`: the weights of a checkpoint as a Hugging Face directory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hybridflow.config.sections import WorkerSection
from hybridflow.errors import CheckpointError, ConfigError, HybridFlowError
from hybridflow.recording.run_folder.checkpoints import WEIGHTS_FOLDER
from hybridflow.runtime.open_policy import open_policy
from hybridflow.tools.options import LayoutRequest, check_threads
from hybridflow.trainer.group import PolicySettings
from hybridflow.trainer.layout import check_model_layout, check_saved_weights, read_model
from megatron_ext.checkpoint import commit
from megatron_ext.checkpoint.commit import BrokenCheckpointError

HF_FOLDER = "hf"


@dataclass(frozen=True)
class ExportJob:
    """The job that a command line asks for."""

    checkpoint: Path
    """A folder under `<run>/checkpoints`, or the `megatron` folder in it."""
    output: Path
    layout: LayoutRequest = field(default_factory=LayoutRequest)
    num_threads: int = 1
    overwrite: bool = False
    dtype: Literal["model", "float32", "bfloat16"] = "model"
    """Dtype of the weights that are written; "model": that of the model which training began with."""


def export_checkpoint(job: ExportJob, note: Callable[[str], None]) -> None:
    """Writes `job.output`, from a checkpoint saved at any layout.

    Raises CheckpointError for one that is damaged or of another model than it says, ConfigError for an output that is
    there already or a layout that does not fit: all that can be known without reading weights, before any worker
    starts. The workers then check every byte before one is written.
    """
    folder, settings = _check(job)
    logs = job.output.with_name(job.output.name + ".logs")
    note(f"opening {folder} on {settings.worker.layout.world_size} worker(s)")
    with open_policy(settings, folder / HF_FOLDER, logs) as group:
        note("checking and loading")
        group.load_checkpoint(folder)
        note(f"writing {job.output}")
        try:
            group.save_hf(job.output)
        except HybridFlowError:
            for part in job.output.glob("*.safetensors.partial"):  # of a full disk, they keep it full
                part.unlink()
            raise
    shutil.rmtree(logs, ignore_errors=True)


def _check(job: ExportJob) -> tuple[Path, PolicySettings]:
    """The folder of the weights, and how to open it; reads no weights and writes nothing."""
    check_threads(job.num_threads)
    folder = find_weights(job.checkpoint)
    _check_output(job)
    named = f"--checkpoint {job.checkpoint}"
    hf_config = read_model(folder / HF_FOLDER, named)
    dtype = check_saved_weights(folder, hf_config)
    layout = job.layout.resolve(hf_config)
    check_model_layout(folder / HF_FOLDER, layout, named, "the layout")
    worker = WorkerSection(layout=layout, num_threads=job.num_threads, export_dtype=job.dtype)
    after_death = f"start the command again with --overwrite: {job.output} is not complete"
    return folder, PolicySettings(worker, dtype, seed=0, optimizer=None, load_weights=False, after_death=after_death)


def _check_output(job: ExportJob) -> None:
    output = job.output
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file. Name a folder")
    if not job.overwrite and output.is_dir() and any(output.iterdir()):
        raise ConfigError(f"--output {output} is not empty. Name another folder, or give --overwrite")
    if output.resolve() == job.checkpoint.resolve() or job.checkpoint.resolve() in output.resolve().parents:
        raise ConfigError(f"--output {output} is in the checkpoint, which must stay as it is. Name another folder")
    blocked = next((parent for parent in output.parents if parent.exists()), None)
    if blocked is not None and not blocked.is_dir():
        raise ConfigError(f"--output {output}: {blocked} is a file. Name another folder")


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
    except BrokenCheckpointError as error:
        raise CheckpointError(str(error)) from error
    return folder
