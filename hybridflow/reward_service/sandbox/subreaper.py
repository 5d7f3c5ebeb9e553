"""Subreaper of a scoring process: what a verifier starts ends with it, however it ends.

`split_off` makes two processes of one: the child scores, its parent stays as its subreaper. Orphans come to it (see
PR_SET_CHILD_SUBREAPER), also those that left the process group, so that none is out of sight when it ends all.

    waits for    the end of the scoring process, or SIGTERM: from the worker, or from the kernel when the worker is gone
    produces     no process that is left, and then its own end, in the way in which the scoring process ended
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import NoReturn

from hybridflow.guard.process_tree import end_descendants, inherit_orphans, signalled_when_parent_dies

END_TIMEOUT_S = 5.0
"""A process that the kernel does not let go in this time, in the middle of a disk access, is given up."""


def split_off(parent_pid: int) -> None:
    """Returns in a new process, which this one guards; it itself never returns."""
    inherit_orphans()
    if not signalled_when_parent_dies(parent_pid, signal.SIGTERM):
        os._exit(1)  # the worker ended before this process could be told of it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    subreaper = os.getpid()
    child = os.fork()
    if child:
        _guard(child)
    if not signalled_when_parent_dies(subreaper, signal.SIGKILL):
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGCHLD})


def _guard(child: int) -> NoReturn:
    try:
        os.closerange(3, 65_536)  # the worker's socket, most of all: only the scoring process speaks on it
        status = _wait(child)
        end_descendants(time.monotonic() + END_TIMEOUT_S)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            with suppress(OSError, ValueError):  # SIGKILL has no handler to reset
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
            os.kill(os.getpid(), number)
        os._exit(os.WEXITSTATUS(status))
    finally:
        os._exit(1)


def _wait(child: int) -> int:
    """How the scoring process ended; that of a process that SIGTERM made this one kill."""
    while True:
        if signal.sigwait({signal.SIGTERM, signal.SIGCHLD}) == signal.SIGTERM:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == child:
                return status
            if pid == 0:
                break
