"""Kernels that torch has compiled go with the run, and do not stay among the temporary files of the machine.

When enough of torch 2.13 is imported it makes a folder `torchinductor_<user>` there, whether it compiles or not, and
names it in TORCHINDUCTOR_CACHE_DIR, which all processes below inherit.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def kept_in(folder: Path) -> dict[str, str]:
    """For the environment of processes whose files are below `folder`; empty where the user has chosen a place."""
    chosen = os.environ.get(VARIABLE)
    return {VARIABLE: str(folder / "inductor")} if chosen is None or _is_made_by_torch(Path(chosen)) else {}


def forget_empty_folder() -> None:
    """Removes the folder that torch has made for this process, unless something was compiled into it."""
    chosen = os.environ.get(VARIABLE)
    if chosen is not None and _is_made_by_torch(Path(chosen)):
        with suppress(OSError):  # it holds something, or another process was faster
            Path(chosen).rmdir()


def _is_made_by_torch(path: Path) -> bool:
    return path.parent == Path(tempfile.gettempdir()) and path.name.startswith("torchinductor_")
