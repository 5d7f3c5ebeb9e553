"""Options of the commands that make a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFiles = Annotated[
    list[Path],
    typer.Option(
        "--config", "-c", help="TOML file, or resolved.json of a run; several are laid over each other, left to right."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="key.path=value, a TOML value or a bare word; may be repeated. Wins over files."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run of this name from its latest checkpoint.")]
