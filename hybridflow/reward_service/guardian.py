"""What a verifier starts ends with its scoring process, however that ends.

`split_off` makes two processes of one: the child scores, its parent stays as its guardian. Orphans come to the guardian
(it is their sub-reaper), also those that left the process group, so that none is out of sight when it ends all.

    waits for    the end of the scoring process, or SIGTERM: from the worker, or from the kernel when the worker is gone
    produces     no process that is left, and then its own end, in the way in which the scoring process ended
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
END_TIMEOUT_S = 5.0
"""A process that the kernel does not let go in this time, in the middle of a disk access, is given up."""


def split_off(parent_pid: int) -> None:
    """Returns in a new process, which this one guards; it itself never returns."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != parent_pid:
        os._exit(1)  # the worker ended before this process could be told of it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    guardian = os.getpid()
    child = os.fork()
    if child:
        _guard(child)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guardian:
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGCHLD})


def _guard(child: int) -> NoReturn:
    try:
        os.closerange(3, 65_536)  # the worker's socket, most of all: only the scoring process speaks on it
        status = _wait(child)
        _end_all(time.monotonic() + END_TIMEOUT_S)
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


def _end_all(deadline: float) -> None:
    """Kills every child until there is none: those of a killed one become children of this process."""
    while time.monotonic() < deadline:
        for pid in _children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            time.sleep(0.002)


def _children() -> list[int]:
    """Processes whose parent is this one, from the fourth field of /proc/<pid>/stat."""
    own = os.getpid()
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError, ValueError, IndexError):  # it ended meanwhile
                if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == own:
                    found.append(int(folder.name))
    return found


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")
