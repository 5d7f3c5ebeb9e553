"""README.md is short, and the commands and options that it and the pages of commands name are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import typer

from hybridflow import cli

ROOT = Path(__file__).parents[2]
COMMANDS = [ROOT / name for name in ("README.md", "docs/commands.md", "docs/example.md")]
COMMAND = r"(?:^ *|`)\.venv/bin/hybridflow ([^#\n|`]+)"
NUM_WORDS = 1000
"""Most that README.md may have, tables and code included: a newcomer reads all of it."""


def test_readme_is_read_in_a_few_minutes() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= NUM_WORDS


def test_commands_and_their_options_exist() -> None:
    cli.mount_commands()
    texts = [document.read_text() for document in COMMANDS]
    counts = [len(lines) for lines in (re.findall(COMMAND, text, re.MULTILINE) for text in texts)]
    assert min(counts) >= 5 and sum(counts) > 18
    for line in [line for text in texts for line in re.findall(COMMAND, text, re.MULTILINE)]:
        command = typer.main.get_command(cli.app)
        words = shlex.split(line.removesuffix("&").strip())
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-") and len(word) > 1} <= known, line
