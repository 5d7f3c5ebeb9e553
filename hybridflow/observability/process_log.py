"""Keeps what a worker process prints, its children's output included, in the run folder."""

from __future__ import annotations

import os
from pathlib import Path


def redirect_output(path: Path) -> None:
    """Appends stdout and stderr of this process, and of every process it starts from now on, to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
