"""The end of whatever a command started: actors, engines, servers, the Ray session, files in /dev/shm."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import psutil
import ray
from ray.exceptions import RayError

from hybridflow.cluster.processes import end_processes, uninterrupted
from hybridflow.cluster.session import stop_session
from hybridflow.cluster.shared_memory import removed_with_processes
from hybridflow.cluster.workers import forget_workers

CLOSE_TIMEOUT_S = 2.0
"""Time that processes of this machine's engines get to end after Ray ended their actors, before they are killed."""
ENGINE_PROCESSES = ("sglang", "RolloutWorker")
"""Parts of their names: a process id may have been given to somebody else."""


def tear_down(
    actors: Iterable[Any], engine_pids: Sequence[int] = (), *, first: Sequence[Callable[[], None]] = ()
) -> None:
    """Ends every process of a command, within seconds, whatever state they are in.

    `first` is closed before. What one of these steps raises does not keep the others from being taken; nor does a
    second Ctrl-C or SIGTERM.
    """
    with uninterrupted(), ExitStack() as steps:  # the last that is named is the first that is taken
        steps.callback(forget_workers)
        steps.callback(_end_processes, actors, engine_pids)
        for close in reversed(first):
            steps.callback(close)


def end_server(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Ends a server that runs without Ray: SIGTERM, then, for what is left of its processes, SIGKILL.

    A second Ctrl-C does not cut this short.
    """
    with uninterrupted():
        children: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _, alive = psutil.wait_procs(children, timeout=timeout_s)
        for child in alive:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def _end_processes(actors: Iterable[Any], engine_pids: Sequence[int]) -> None:
    with removed_with_processes():
        for actor in actors:
            with suppress(RayError, ValueError):
                ray.kill(actor)
        if ray.is_initialized():
            stop_session()
        for name_part in ENGINE_PROCESSES:
            end_processes(list(engine_pids), name_part, CLOSE_TIMEOUT_S)
