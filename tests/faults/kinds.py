"""The kinds of processes that a run has: how one is found, and what must be said when one is killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Kind:
    """A kind of process below the one that the user started.

    `named`: part of what the run says when one is gone; "{pid}" stands for its id. Empty: it is replaced in silence.
    """

    name: str
    finds: Callable[[str], bool]
    """By its command line."""
    named: tuple[str, ...]
    ends_run: bool


def _starts(*titles: str) -> Callable[[str], bool]:
    return lambda command: command.startswith(titles)


def _has(*parts: str) -> Callable[[str], bool]:
    return lambda command: any(part in command for part in parts)


ENGINE = ("engine-0",)
KINDS = {
    kind.name: kind
    for kind in (
        Kind("first", lambda command: False, ("first process of the run (process {pid})",), True),
        Kind("guardian", lambda command: False, ("guardian of the run (process {pid})",), True),
        Kind("driver", lambda command: False, ("driver of the run (process {pid})",), True),
        Kind("train_worker", _starts("ray::TrainWorker"), ("train worker",), True),
        Kind("gcs", _has("/gcs_server "), ("control service (GCS)",), True),
        Kind("raylet", _has("/raylet/raylet "), ("worker pool (raylet)",), True),
        Kind("agent", _starts("ray::DashboardAgent", "ray::RuntimeEnvAgent"), ("worker pool (raylet)", "agent"), True),
        Kind("engine", _starts("ray::RolloutWorker"), ENGINE, False),
        Kind("scheduler", _starts("sglang::scheduler"), ENGINE, False),
        Kind("detokenizer", _starts("sglang::detokenizer"), ENGINE, False),
        Kind("reward_worker", _starts("ray::RewardWorker"), ("reward worker 0",), False),
        Kind("scoring", _has("reward_service.sandbox.scoring_process"), (), False),
        Kind("wandb", _has("wandb-core "), ("W&B",), False),
    )
}
STOPPED = ("train_worker", "scheduler", "engine", "raylet", "gcs", "reward_worker")
"""Kinds whose stop a run must notice itself."""
ANY_STOP = ("stopped", "hangs", "silent", "engine-0", "reward worker")


def find(kind: str, first: psutil.Process) -> list[psutil.Process]:
    """Processes of this kind below `first`, which counts as "first" itself."""
    chain = [first]
    while len(chain) < 3 and (below := _children(chain[-1])):
        chain.append(below[0])
    if kind in ("first", "guardian", "driver"):
        place = ("first", "guardian", "driver").index(kind)
        return chain[place : place + 1]
    return [process for process in first.children(recursive=True) if KINDS[kind].finds(_command(process))]


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return sorted(process.children(), key=lambda child: child.create_time())
    except psutil.NoSuchProcess:
        return []


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) + " "
    except psutil.Error:
        return ""
