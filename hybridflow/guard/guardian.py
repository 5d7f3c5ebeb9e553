"""A command whose processes all end with it, however it ends.

    the process that the user started     passes signals on; gives the exit code
      `-- guardian                        in a process group of its own
            `-- driver                    does the work: all that a run starts is below it

Both processes above the driver inherit orphans, so nothing that a run starts gets away from them, whatever session or
group it is in. Where one of the three is killed, the others end all that is left and remove the folder for temporary
files and what is in /dev/shm. They hold next to no memory of their own: they are forked before anything is imported.

    waits for    the end of the process below, of the process above, and signals for the driver
    produces     no process that is left; an error message where something was killed; the exit code
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import tempfile
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from hybridflow.environment import joined_cluster
from hybridflow.guard.left_behind import END_TIMEOUT_S, end_marked, remove_shared_memory
from hybridflow.guard.process_tree import end_descendants, inherit_orphans, signalled_when_parent_dies
from hybridflow.private_folder import LONGEST_SOCKET, MARK, PrivateFolder, find_abandoned

EXIT_ERROR = 1
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PARENT_DIED = signal.SIGUSR2
REMEDY = "All processes of the run were ended; --resume continues from the last checkpoint, where there is one"


def split_off() -> None:
    """Returns in a new process, the driver; the present one stays above it and never returns.

    Temporary files of the driver, and of all that it starts, go into a private folder that ends with it. Raises
    ConfigError where TMPDIR does not do.
    """
    since = time.time()
    for abandoned in find_abandoned(Path(tempfile.gettempdir())):  # of a command all of whose guardians were killed
        end_marked(abandoned)
    # In a cluster Ray's sockets are where it was started.
    folder = PrivateFolder() if joined_cluster() else PrivateFolder(longest_name=LONGEST_SOCKET)
    os.environ[MARK] = os.environ["TMPDIR"] = str(folder.path)
    group = os.getpgrp()
    # What the user's shell ignores (nohup) stays ignored.
    passed_on = [number for number in PASSED_ON if signal.getsignal(number) != signal.SIG_IGN]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*passed_on, signal.SIGCHLD, PARENT_DIED})
    own = os.getpid()
    inherit_orphans()
    if guardian := os.fork():
        _guard(guardian, "guardian", passed_on, folder, since)
    os.setpgid(0, 0)  # a signal for the whole group reaches the driver, not who clears up behind it
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    inherit_orphans()
    if not signalled_when_parent_dies(own, PARENT_DIED):
        os._exit(EXIT_ERROR)
    own = os.getpid()
    words, _last_words[:] = _open_pipe()
    if driver := os.fork():
        _guard(driver, "driver", passed_on, folder, since, words)
    os.close(words)
    atexit.register(end_by_itself)
    os.setpgid(0, group)  # that of the terminal
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    if not signalled_when_parent_dies(own, signal.SIGKILL):
        os._exit(EXIT_ERROR)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    tempfile.tempdir = None  # to be read again


_last_words: list[int] = []
"""In the driver: the end of a pipe to its guardian."""


def end_by_itself() -> None:
    """Lets the guardian know that this process, the driver, ends by itself and has said why, if there is a reason.

    Called by the interpreter as it ends; by who ends the process without it. A library that ends the process does not.
    """
    for end in _last_words:
        with suppress(OSError):  # the guardian is gone
            os.write(end, b".")


def _open_pipe() -> tuple[int, list[int]]:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    return reading, [writing]


def _has_spoken(words: int) -> bool:
    try:
        return bool(os.read(words, 1))
    except BlockingIOError:
        return False


def _guard(
    child: int, name: str, passed_on: Collection[signal.Signals], folder: PrivateFolder, since: float, words: int = -1
) -> NoReturn:
    code, parent = EXIT_ERROR, os.getppid()
    try:
        status = _wait(child, passed_on)
        end_descendants(time.monotonic() + END_TIMEOUT_S)
        folder.close()
        remove_shared_memory(since)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            culprit = f"{name} of the run (process {child})"
            if name == "driver" and os.getppid() != parent:
                culprit = f"first process of the run (process {parent})"
            _tell(f"error: the {culprit} was ended by {signal.Signals(-code).name}: killed, or out of memory. {REMEDY}")
            code = EXIT_ERROR
        elif code > 0 and words >= 0 and not _has_spoken(words):
            _tell(
                f"error: the driver of the run (process {child}) was ended, with exit code {code}, by a library that "
                f"it had loaded: Ray does so where its worker pool (raylet) is gone. {REMEDY}"
            )
    finally:
        os._exit(code)


def _wait(child: int, passed_on: Collection[signal.Signals]) -> int:
    """The status of the child, once it has ended."""
    while True:
        number = signal.sigwait({*passed_on, signal.SIGCHLD, PARENT_DIED})
        if number == PARENT_DIED:
            os.kill(child, signal.SIGKILL)
        elif number != signal.SIGCHLD:
            os.kill(child, number)
        while True:  # orphans that have ended are collected on the way
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == child:
                return status
            if pid == 0:
                break


def _tell(text: str) -> None:
    with suppress(OSError):  # whoever read it is gone
        print(text, file=sys.stderr, flush=True)
