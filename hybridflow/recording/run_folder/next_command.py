"""The command that a user types next: that of this process, with --resume where there is something to resume."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def this_command(arguments: Sequence[str] | None = None) -> list[str]:
    """The program as it can be typed in this folder, and its arguments."""
    program, *given = sys.argv if arguments is None else arguments
    path = Path(program)
    if path.suffix == ".py":
        return [sys.executable, "-m", "hybridflow.cli", *given]
    found = shutil.which(path.name)
    if found is not None and path.exists() and os.path.samefile(found, path):
        return [path.name, *given]
    relative = os.path.relpath(path)
    return [relative if not relative.startswith("..") else str(path), *given]


def go_on(run: Path, latest: Path | None, arguments: Sequence[str] | None = None) -> str:
    """How the run in `run` goes on from `latest`, its last checkpoint, or begins again where there is none."""
    command = [word for word in this_command(arguments) if word != "--resume"]
    if latest is None:
        return f"No checkpoint of {run} was written yet. Start it again:\n    {shlex.join(command)}"
    return f"--resume continues from the last checkpoint, {latest}:\n    {shlex.join([*command, '--resume'])}"
