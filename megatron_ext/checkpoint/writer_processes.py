"""Writer processes of Megatron's checkpoints, patched to leave nothing behind but the checkpoint.

Megatron-Core 0.16.1 keeps the writers' results in a `multiprocessing.Manager`: one more process per rank, which imports
torch to unpickle the first result (seconds of the first save, and hundreds of MiB), and waits for ever when the trainer
is killed. Here the results lie in a file in memory, with no process in between. A pipe could not stand in for it: a
writer with results larger than its buffer would wait for a trainer that waits for the writer to end.

A forked writer of upstream may also wait for a lock that died with its parent, holding a copy of the parent's memory.
Here a writer ends with the process whose state it writes.

test_upstream_leaves_processes_of_a_killed_trainer in tests/dist_cpu/test_patches.py says whether upstream still needs
this.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pickle
import queue
import signal
import struct
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.reduction import DupFd
from typing import Any

from megatron_ext import platform

platform.install()

from megatron.core.dist_checkpointing.strategies import filesystem_async  # noqa: E402

_LENGTH = struct.Struct("<q")


class ResultsQueue:
    """Items in the order of their `put`, from any process that was forked from this one or was sent this queue.

    One process gets; others may hold copies to put. The memory is freed when the last of them drops its copy or ends.
    """

    def __init__(self) -> None:
        fd = os.memfd_create("results")
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)  # so that one write is one item
        self._open(fd)

    def _open(self, fd: int) -> None:
        self._fd = fd
        self._position = 0
        weakref.finalize(self, os.close, fd)

    def fileno(self) -> int:
        """The descriptor of the memory that holds the items."""
        return self._fd

    def put(self, item: Any) -> None:
        """Appends `item`, which must pickle. OSError when there is no memory for it."""
        content = pickle.dumps(item)
        record = _LENGTH.pack(len(content)) + content
        written = os.write(self._fd, record)
        if written != len(record):
            raise OSError(f"only {written} of {len(record)} bytes of a checkpoint writer's results could be kept")

    def get_nowait(self) -> Any:
        """The next item. queue.Empty when there is none, or only the beginning of one whose writer was killed."""
        header = os.pread(self._fd, _LENGTH.size, self._position)
        if len(header) < _LENGTH.size:
            raise queue.Empty
        (length,) = _LENGTH.unpack(header)
        start = self._position + _LENGTH.size
        content = os.pread(self._fd, length, start)
        if len(content) < length:
            raise queue.Empty
        self._position = start + length
        return pickle.loads(content)

    def __reduce__(self) -> tuple[Callable[[Any], ResultsQueue], tuple[Any]]:
        return _from_descriptor, (DupFd(self._fd),)


def _from_descriptor(duplicate: Any) -> ResultsQueue:
    """The same queue in the process that it was sent to, to put to."""
    copy = ResultsQueue.__new__(ResultsQueue)
    copy._open(duplicate.detach())
    return copy


_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Has the kernel kill this process when the one that started it, `parent`, ends (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os.kill(os.getpid(), signal.SIGKILL)


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
