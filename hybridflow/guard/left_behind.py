"""Remains of killed processes of a run: processes, files in /dev/shm, a folder for temporary files.

Every process of a run has MARK in its environment, the path of that folder, from before it began: it shows in
/proc/<pid>/environ whatever the process does, also of one that was adopted by init.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

from hybridflow.private_folder import MARK

SHARED_MEMORY = Path("/dev/shm")
PREFIXES = ("sglang_loads_", "sgl_shm_", "multi_tokenizer_args_", "sem.mp-", "psm_", "torch_", "cuda.shm.", "nccl-")
"""Names in SHARED_MEMORY that are new with each process; of others we cannot know who else uses them."""
END_TIMEOUT_S = 10.0
CLOCK_STEP_S = 1.0
"""Seconds that times of files may be behind the clock."""


def clear(temporary: Path, since: float) -> None:
    """Ends and removes what is left of a run with this folder, begun at `since` (time.time()), whose driver is dead.

    Waits for its guardian, if it still lives, to do the same.
    """
    deadline = time.monotonic() + END_TIMEOUT_S
    while _is_held(temporary) and time.monotonic() < deadline:
        time.sleep(0.05)
    end_marked(temporary)
    shutil.rmtree(temporary, ignore_errors=True)
    remove_shared_memory(since)


def end_marked(temporary: Path) -> list[int]:
    """Kills every process with this mark; returns their ids once they are gone, or END_TIMEOUT_S later."""
    ended: set[int] = set()
    deadline = time.monotonic() + END_TIMEOUT_S
    while (found := _find_marked(temporary)) and time.monotonic() < deadline:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ended.update(found)
        time.sleep(0.02)
    return sorted(ended)


def remove_shared_memory(since: float) -> list[Path]:
    """Removes files of PREFIXES that this user's processes have made since then, and that no process has any more."""
    made = {path for path in SHARED_MEMORY.iterdir() if path.name.startswith(PREFIXES) and _is_of(path, since)}
    used = {inode for folder in _processes() for inode in shared_memory_of(folder)} if made else set()
    left = {path for path in made if _inode(path) not in used}
    for path in left:
        path.unlink(missing_ok=True)
    return sorted(left)


def shared_memory_of(process: Path) -> set[int]:
    """Inodes of the files in SHARED_MEMORY that a process has open or mapped, by its folder in /proc.

    Not their names: a semaphore is mapped under a name that glibc has taken away again (2.36, sem_open). Of a process
    that has ended meanwhile, or may not be looked at, there are none.
    """
    device = os.stat(SHARED_MEMORY).st_dev
    found: set[int] = set()
    with suppress(OSError):
        for line in (process / "maps").read_text().splitlines():
            _, _, _, where, inode, *_ = line.split(maxsplit=5)
            if where == f"{os.major(device):02x}:{os.minor(device):02x}":
                found.add(int(inode))
        for link in (process / "fd").iterdir():
            with suppress(OSError):  # it was closed
                if os.readlink(link).startswith(str(SHARED_MEMORY)):
                    found.add(link.stat().st_ino)
    return found


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return None


def _is_of(path: Path, since: float) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return found.st_uid == os.getuid() and found.st_ctime >= since - CLOCK_STEP_S


def _find_marked(temporary: Path) -> list[int]:
    mark = f"{MARK}={temporary}".encode()
    found: list[int] = []
    for folder in _processes():
        with suppress(OSError):
            is_marked = mark in (folder / "environ").read_bytes().split(b"\0")
            is_gone = (folder / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            if is_marked and not is_gone and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def _processes() -> list[Path]:
    return [folder for folder in Path("/proc").iterdir() if folder.name.isdecimal()]


def _is_held(temporary: Path) -> bool:
    """Whether a process that made the folder lives: it holds its lock."""
    try:
        descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
