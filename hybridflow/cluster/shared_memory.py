"""Files that killed processes of a run leave in /dev/shm: whose makers remove them only at an orderly end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from hybridflow.guard.left_behind import PREFIXES, SHARED_MEMORY


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
    """Files of PREFIXES that children of this process, and theirs, have mapped."""
    found: set[Path] = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(OSError):  # it ended meanwhile
            for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
                path = Path(line.split(maxsplit=5)[5]) if line.count("/") else None
                if path is not None and path.parent == SHARED_MEMORY and path.name.startswith(PREFIXES):
                    found.add(path)
    return found
