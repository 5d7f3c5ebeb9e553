"""Ends processes by id, stopped ones too, on whichever node they run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

KILL_TIMEOUT_S = 30.0


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Inside, Ctrl-C, SIGTERM and SIGHUP do nothing: what ends processes must not be cut short."""
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in ending}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def end_processes(pids: list[int], name_part: str, grace_s: float) -> list[int]:
    """Kills those of this node that have not ended after `grace_s`, and returns their ids.

    A process whose name and command line lack `name_part` is left alone: its id was given to somebody else.
    """
    alive: list[psutil.Process] = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if name_part in process.name() or name_part in " ".join(process.cmdline()):
                alive.append(process)
    if grace_s:
        _, alive = psutil.wait_procs(alive, timeout=grace_s)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()  # SIGKILL: reaches a stopped process as well
    return [process.pid for process in alive]


def resident_bytes(pids: list[int]) -> int:
    """Memory of the machine in use by those of this node that live."""
    total = 0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            total += psutil.Process(pid).memory_info().rss
    return total


def kill_on_node(node_id: str, pids: list[int], name_part: str) -> None:
    """Kills processes of another node, or of this one, at once."""
    if node_id == ray.get_runtime_context().get_node_id():
        end_processes(pids, name_part, 0)
        return
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    kill = ray.remote(num_cpus=0)(end_processes).options(scheduling_strategy=there)
    ray.get(kill.remote(pids, name_part, 0), timeout=KILL_TIMEOUT_S)
