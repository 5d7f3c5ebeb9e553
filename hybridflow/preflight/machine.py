"""Checks of the machine: kernels, memory, disk, the limits that the system grants, and variables.

Memory and disk: what the model certainly takes against what there is. On a CPU all processes share the memory of the
machine. With GPUs the gates of `runtime/colocation.py` compare wanted and free memory; nothing is estimated here.

Limits: names of sockets, files, shared memory, a cluster. Variables: those that the configuration gives to workers and
verifiers have to be set.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from hybridflow.cluster.limits import find_problems
from hybridflow.config.sections import Config
from hybridflow.environment import named
from hybridflow.errors import ConfigError
from hybridflow.preflight.shape import ModelShape
from hybridflow.preflight.subject import Finding, Subject
from hybridflow.trainer.kernels import (
    is_left_to_nodes,
    refuse_float32,
    refuse_grouped_experts,
    resolve_worker,
    sees_gpus,
)


def check_limits(subject: Subject) -> Iterator[Finding]:
    """The same for every configuration."""
    problems = list(find_problems())
    yield from (Finding("error", problem) for problem in problems)
    if not problems:
        yield Finding("fact", "folder for temporary files, open files and shared memory suffice")


def check_environment(subject: Subject) -> Iterator[Finding]:
    """An error for each key that names a variable which is not set."""
    config = subject.config
    for key, names in (
        ("reward.environment", config.reward.environment),
        ("cluster.environment", config.cluster.environment),
    ):
        try:
            named(names, key)
        except ConfigError as error:
            yield Finding("error", str(error))
            continue
        if names:
            yield Finding("fact", f"{key}: {', '.join(names)} set")


GIB = 2**30
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}
GRADIENT_BYTES = 4
MOMENTS_BYTES = 8
"""AdamW's two, in float32; bfloat16 weights have a float32 copy beside them."""
WORKER_GIB, ENGINE_RANK_GIB, REWARD_GIB = 0.5, 0.9, 0.3
"""Resident memory of a process without a model: libraries, measured with quickstart."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_USED = Path("/sys/fs/cgroup/memory.current")


def check_kernels(subject: Subject) -> Iterator[Finding]:
    """Check that what computes is here: a library that is named, and GPUs that suit precision and experts."""
    config = subject.config
    if is_left_to_nodes():
        yield Finding("fact", resolve_worker(config.train)[1])
        return
    on_gpus = sees_gpus()
    for refuse in (
        lambda: refuse_float32(config.model.dtype, forced=config.model.force_float32, on_gpus=on_gpus),
        lambda: refuse_grouped_experts(config.train, on_gpus=on_gpus),
    ):
        try:
            refuse()
        except ConfigError as error:
            yield Finding("error", str(error))
    told = resolve_worker(config.train)[1]
    if config.train.kernels in ("transformer_engine", "apex") and not on_gpus:
        told += ', and there is no GPU here. Remedy: where this machine is to train, set train.kernels = "auto"'
        yield Finding("warning", told)
    else:
        yield Finding("fact", told)


def check_memory(subject: Subject) -> Iterator[Finding]:
    """An error where weights, optimizer and KV pool alone are above all memory; a warning where it gets tight."""
    if sees_gpus() or is_left_to_nodes() or subject.shape is None:
        return
    model = compute_model_bytes(subject.config, subject.shape) / GIB
    config = subject.config
    processes = WORKER_GIB * (config.train.layout.world_size + 1) + REWARD_GIB * config.reward.num_workers
    processes += ENGINE_RANK_GIB * config.rollout.num_engines * config.rollout.tp_size
    free = free_memory_bytes() / GIB
    told = (
        f"about {model + processes:.1f} GiB of memory are needed ({model:.1f} for weights, optimizer and KV pool), and "
        f"{free:.1f} GiB are free"
    )
    if config.rollout.kv_cache_tokens is None:
        told += "; beside that each engine's KV pool takes a share of what is free, as rollout.kv_cache_tokens is empty"
    if model > free:
        yield Finding(
            "error",
            f"model.path = {config.model.path!r}: {told}. Remedy: take a smaller model, lower rollout.kv_cache_tokens "
            f"({config.rollout.kv_cache_tokens}) or rollout.num_engines ({config.rollout.num_engines}), or end other "
            f"processes",
        )
    elif model + processes > free:
        yield Finding("warning", f"{told}. Remedy: end other processes, or take fewer workers")
    else:
        yield Finding("fact", told)


def compute_model_bytes(config: Config, shape: ModelShape) -> int:
    """Weights, of the reference too, gradients and optimizer state of all train workers; weights and KV pool of all
    engines."""
    size, dtype = shape.num_parameters, config.model.dtype
    element = ELEMENT_BYTES[dtype]
    copies = config.train.layout.dp * config.train.layout.cp
    num_weights = 2 if config.algorithm.kl.is_on else 1  # the policy's and, on the host, its reference's
    trainer = copies * size * (num_weights * element + GRADIENT_BYTES) + size * (
        MOMENTS_BYTES + (4 if dtype == "bfloat16" else 0)
    )
    pool = (config.rollout.kv_cache_tokens or 0) * shape.kv_elements_per_token * element
    return trainer + config.rollout.num_engines * (size * element + pool)


def free_memory_bytes() -> int:
    """Bytes of memory that this process's group may still take."""
    free = psutil.virtual_memory().available
    try:
        limit, used = CGROUP_LIMIT.read_text().strip(), int(CGROUP_USED.read_text())
    except (OSError, ValueError):
        return free  # no such group
    return free if limit == "max" else min(free, int(limit) - used)


def check_disk(subject: Subject) -> Iterator[Finding]:
    """The run folder can be written, and has room for the checkpoints that are kept and the one that is written."""
    config = subject.config
    folder = Path(config.run.directory)
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    except OSError as error:  # no path of this length, or links in a circle
        told = config.run.directory[:200]
        yield Finding("error", f"run.directory = {told!r}: {error.strerror}. Remedy: --set run.directory=<a folder>")
        return
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "cannot be written to" if there.is_dir() else "is no folder"
        yield Finding(
            "error", f"run.directory = {config.run.directory!r}: {there} {what}. Remedy: --set run.directory=<a folder>"
        )
        return
    if subject.shape is None:
        return
    size, element = subject.shape.num_parameters, ELEMENT_BYTES[config.model.dtype]
    checkpoint = size * (element + MOMENTS_BYTES + (4 if config.model.dtype == "bfloat16" else 0))
    num_models = 3 if config.algorithm.kl.is_on else 2  # the first, the last, and the reference
    needed = (config.checkpoint.keep_last + 1) * checkpoint + num_models * size * element
    free = shutil.disk_usage(there).free
    told = f"about {needed / GIB:.1f} GiB of disk are needed for checkpoints and model, {free / GIB:.1f} GiB are free"
    if needed > free:
        yield Finding(
            "error",
            f"run.directory = {config.run.directory!r}: {told}. Remedy: make room, name another folder, or lower "
            f"checkpoint.keep_last ({config.checkpoint.keep_last})",
        )
    else:
        yield Finding("fact", told)
