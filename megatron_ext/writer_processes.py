"""The processes that Megatron starts to write checkpoints end with the process whose state they write.

Upstream (Megatron-Core 0.16.1) leaves them behind when a trainer is killed: the server of its results queue waits for
ever, and a forked writer may wait for a lock that died with its parent, holding a copy of the parent's memory.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.managers import SyncManager
from typing import Literal

from megatron_ext import platform

platform.install()

from megatron.core.dist_checkpointing.strategies import filesystem_async  # noqa: E402

_PR_SET_PDEATHSIG = 1
_managers: list[SyncManager] = []
"""Kept from the garbage collector: a manager that is collected ends its server."""
_forking_writers = False


def prepare_results_queue(start_method: Literal["spawn", "fork"] = "spawn") -> None:
    """Gives Megatron the queue that it would make at the first save, from a server that ends with this process.

    "spawn" imports the program's main module there, so it must be guarded by `if __name__ == "__main__"`.
    """
    if not hasattr(filesystem_async, "_results_queue"):
        raise platform.PlatformError(
            "megatron.core.dist_checkpointing.strategies.filesystem_async._results_queue is gone: see whether the "
            "server of the results queue still outlives a killed trainer, and drop writer_processes.py if not"
        )
    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=multiprocessing.get_context(start_method))
        manager.start(initializer=_end_with_parent, initargs=(os.getpid(),))
        _managers.append(manager)
        filesystem_async._results_queue = manager.Queue()


@contextmanager
def writers_end_with_parent() -> Iterator[None]:
    """Every process that is forked inside is killed when the one that forked it ends."""
    global _forking_writers
    _forking_writers = True
    try:
        yield
    finally:
        _forking_writers = False


def _end_with_parent(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os.kill(os.getpid(), signal.SIGKILL)


class _ForkHook:
    """Runs around every fork of this process, and of the writers themselves."""

    parent = 0

    def before(self) -> None:
        self.parent = os.getpid()

    def in_child(self) -> None:
        if _forking_writers:
            _end_with_parent(self.parent)


_hook = _ForkHook()
os.register_at_fork(before=_hook.before, after_in_child=_hook.in_child)
