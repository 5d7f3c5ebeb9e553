"""Modes of files, who may read what a run writes: its user alone, unless `run.mode` says otherwise.

Held by the umask, which every process that a run starts inherits: checkpoints of train workers, logs of engines and the
files of Weights & Biases have it too. The user's own umask is kept to: `run.mode` never opens what that closes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

PRIVATE = "0700"

umask_of_user: int | None = None


def write_privately() -> None:
    """Make what this process writes from now on for its user alone."""
    global umask_of_user
    if umask_of_user is None:
        umask_of_user = os.umask(0o777)
        os.umask(umask_of_user | _closed(PRIVATE))


@contextmanager
def file_mode(mode: str) -> Iterator[None]:
    """Folders have `mode` inside, and files what it gives them, as far as the user's own umask allows."""
    before = os.umask(0o777)
    os.umask((before if umask_of_user is None else umask_of_user) | _closed(mode))
    try:
        yield
    finally:
        os.umask(before)


def _closed(mode: str) -> int:
    return ~int(mode, 8) & 0o777
