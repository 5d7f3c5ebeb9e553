"""The end of whatever a command started: actors, engines, servers, the Ray session, files in /dev/shm.

Processes remove what they have in /dev/shm only at an orderly end; those that are killed leave it behind.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError

from hybridflow.cluster.processes import end_processes, uninterrupted
from hybridflow.cluster.session import stop_session
from hybridflow.cluster.workers import forget_workers
from hybridflow.guard.left_behind import PREFIXES, SHARED_MEMORY, shared_memory_of


@contextmanager
def removed_with_processes() -> Iterator[None]:
    """Inside, the processes that this one started are ended; what they had in /dev/shm then goes too."""
    used = _used_by_children()
    try:
        yield
    finally:
        for path in used:
            with suppress(OSError):  # another user's, or gone
                path.unlink()


def _used_by_children() -> set[Path]:
    """Files of PREFIXES that children of this process, and theirs, have open or mapped."""
    children = psutil.Process().children(recursive=True)
    used = {inode for child in children for inode in shared_memory_of(Path(f"/proc/{child.pid}"))}
    found: set[Path] = set()
    for path in SHARED_MEMORY.iterdir():
        with suppress(OSError):  # gone meanwhile
            if path.name.startswith(PREFIXES) and path.lstat().st_ino in used:
                found.add(path)
    return found


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
