"""What `train.kernels` comes to on this machine, asked without torch in the first seconds of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from hybridflow.config.sections import WorkerSection
from hybridflow.errors import ConfigError
from megatron_ext.kernels import KernelsError, resolve_kernels

NVIDIA = Path("/proc/driver/nvidia/gpus")
Worker = TypeVar("Worker", bound=WorkerSection)


def sees_gpus() -> bool:
    """Whether this machine has GPUs that this process may use."""
    return NVIDIA.is_dir() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def resolve_worker(section: Worker) -> tuple[Worker, str]:
    """The section with `kernels` and, where both are left open, `attention` as they will be, and a line that says so.

    A driver without GPUs on a cluster that already runs (RAY_ADDRESS) cannot say what its nodes have: there `auto`
    stays, and each worker decides for its own machine. Raises ConfigError for a library that is named and missing.
    """
    if section.kernels == "auto" and not sees_gpus() and os.environ.get("RAY_ADDRESS"):
        return section, 'kernels (train.kernels = "auto"): as installed on the nodes; logs/train-*.log say which'
    try:
        kernels = resolve_kernels(section.kernels, section.attention, on_cuda=sees_gpus())
    except KernelsError as error:
        raise ConfigError(f"train.{error}") from error
    told = f'kernels (train.kernels = "{section.kernels}"): {kernels.describe()}'
    return section.model_copy(update={"kernels": kernels.library, "attention": kernels.attention}), told
