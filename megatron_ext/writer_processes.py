"""The processes that Megatron starts to write checkpoints end with the process whose state they write.

Upstream (Megatron-Core 0.16.1) leaves them behind when a trainer is killed: the server of its results queue waits for
ever, and a forked writer may wait for a lock that died with its parent, holding a copy of the parent's memory.
Upstream's server also imports the program's main module: with Ray that costs the first save seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.managers import SyncManager
from types import ModuleType

from megatron_ext import platform
from megatron_ext.parent_death import end_with_parent

platform.install()

from megatron.core.dist_checkpointing.strategies import filesystem_async  # noqa: E402

_managers: list[SyncManager] = []
"""Kept from the garbage collector: a manager that is collected ends its server."""
_forking_writers = False


def prepare_results_queue() -> None:
    """Gives Megatron the queue that it would make at the first save, from a server that ends with this process."""
    if not hasattr(filesystem_async, "_results_queue"):
        raise platform.PlatformError(
            "megatron.core.dist_checkpointing.strategies.filesystem_async._results_queue is gone: see whether the "
            "server of the results queue still outlives a killed trainer, and drop writer_processes.py if not"
        )
    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
        with _without_main_module():
            manager.start(initializer=end_with_parent, initargs=(os.getpid(),))
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


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Inside, a spawned process does not import the program's main module, which takes seconds and may have effects."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class _ForkHook:
    """Runs around every fork of this process, and of the writers themselves."""

    parent = 0

    def before(self) -> None:
        self.parent = os.getpid()

    def in_child(self) -> None:
        if _forking_writers:
            end_with_parent(self.parent)


_hook = _ForkHook()
os.register_at_fork(before=_hook.before, after_in_child=_hook.in_child)
