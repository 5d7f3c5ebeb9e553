"""The choice of `train.kernels` on this machine, asked without torch in the first seconds of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from hybridflow.config.sections import WorkerSection
from hybridflow.environment import joined_cluster
from hybridflow.errors import ConfigError
from megatron_ext.kernels.choice import KernelsError, find_obstacle, resolve_kernels

NVIDIA = Path("/proc/driver/nvidia/gpus")
Worker = TypeVar("Worker", bound=WorkerSection)


def sees_gpus() -> bool:
    """Whether this machine has GPUs that this process may use."""
    return NVIDIA.is_dir() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def is_left_to_nodes() -> bool:
    """Whether other machines compute: this one has no GPU and joins a cluster that already runs (RAY_ADDRESS)."""
    return joined_cluster() is not None and not sees_gpus()


def refuse_float32(dtype: str, *, forced: bool, on_gpus: bool) -> None:
    """Raises ConfigError for a run in float32 on GPUs that nobody asked for: the default is meant for a CPU."""
    if dtype == "float32" and on_gpus and not forced:
        raise ConfigError(
            'model.dtype = "float32" on GPUs: twice the memory of bfloat16, and no flash attention. Remedy: set '
            'model.dtype = "bfloat16", or model.force_float32 = true to have it all the same'
        )


def refuse_grouped_experts(section: WorkerSection, *, on_gpus: bool) -> None:
    """Raises ConfigError where grouped products cannot run. Libraries of nodes are asked there, by each worker."""
    if not section.layout.grouped_experts:
        return
    obstacle = None if is_left_to_nodes() else find_obstacle("transformer_engine")
    if obstacle is not None or not on_gpus:
        missing = "Transformer Engine, which is not installed here" if obstacle else "GPUs, and there are none here"
        raise ConfigError(
            f"train.layout.grouped_experts = true: it needs {missing}. Remedy: set train.layout.grouped_experts = false"
        )


def resolve_worker(section: Worker) -> tuple[Worker, str]:
    """The section with `kernels` and, where both are left open, `attention` as they will be, and a line that says so.

    What is left to the nodes stays as it is, and each worker decides for its own machine, or refuses. Raises
    ConfigError for a library that is named and missing.
    """
    if is_left_to_nodes():
        told = f'kernels (train.kernels = "{section.kernels}"): as installed on the nodes; logs/train-*.log say which'
        return section, told
    try:
        kernels = resolve_kernels(section.kernels, section.attention, on_cuda=sees_gpus())
    except KernelsError as error:
        raise ConfigError(f"train.{error}") from error
    told = f'kernels (train.kernels = "{section.kernels}"): {kernels.describe()}'
    return section.model_copy(update={"kernels": kernels.library, "attention": kernels.attention}), told
