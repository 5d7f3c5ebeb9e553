"""Processes below this one, as the Linux kernel keeps them: who dies with whom, and who inherits orphans."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PAUSE_S = 0.002


def inherit_orphans() -> None:
    """Orphans below this process become its children, also those that have left its group and session."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def signalled_when_parent_dies(parent: int, number: int) -> bool:
    """From now on this process gets signal `number` when its parent ends; False if `parent` has ended already.

    The parent is the thread that forked: it must live as long as its process.
    """
    _prctl(PR_SET_PDEATHSIG, number)
    return os.getppid() == parent


def end_descendants(deadline: float) -> None:
    """Kills every child of this process until there is none: those of a killed one become its children.

    To be called by who inherits orphans. What the kernel does not let go until `deadline`, in the middle of a disk
    access, is given up.
    """
    while time.monotonic() < deadline:
        for pid in list_children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # reaches a stopped process as well
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            time.sleep(PAUSE_S)


def list_children() -> list[int]:
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
