"""What Megatron's checkpoint writers leave behind: nothing but the checkpoint.

Upstream (Megatron-Core 0.16.1) leaves processes when a trainer is killed: the server of its results queue waits for
ever, and a forked writer may wait for a lock that died with its parent, holding a copy of the parent's memory. Here
the results need no server (results_queue.py), and a writer ends with the process whose state it writes. Whether
upstream still needs it says test_upstream_leaves_processes_of_a_killed_trainer in tests/dist_cpu/test_patches.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from megatron_ext import platform
from megatron_ext.checkpoint.parent_death import end_with_parent
from megatron_ext.checkpoint.results_queue import ResultsQueue

platform.install()

from megatron.core.dist_checkpointing.strategies import filesystem_async  # noqa: E402

_forking_writers = False


def prepare_results_queue() -> None:
    """Gives Megatron a queue for the results of its next save, so that it starts no server to hold one."""
    if not hasattr(filesystem_async, "_results_queue"):
        raise platform.PlatformError(
            "megatron.core.dist_checkpointing.strategies.filesystem_async._results_queue is gone: see whether saves "
            "still start a server for their results, and drop prepare_results_queue if not"
        )
    filesystem_async._results_queue = ResultsQueue()


@contextmanager
def writers_end_with_parent() -> Iterator[None]:
    """Every process that is forked inside is killed when the one that forked it ends."""
    global _forking_writers
    _forking_writers = True
    try:
        yield
    finally:
        _forking_writers = False


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
