"""Files that killed processes of a run leave in /dev/shm: whose makers remove them only at an orderly end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

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
