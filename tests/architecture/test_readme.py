"""Everything that README.md, SECURITY.md and the pages of commands name is there: commands, options, keys, files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from hybridflow import cli
from hybridflow.config.keys import list_keys
from hybridflow.config.sections import Config

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "docker/README.md")]
COMMANDS = [ROOT / name for name in ("README.md", "docs/commands.md", "docs/example.md")]
COMMAND = r"(?:^ *|`)\.venv/bin/hybridflow ([^#\n|`]+)"
NUM_WORDS = 1150
"""Most that README.md may have, tables and code included: a newcomer reads all of it."""


def test_readme_is_read_in_a_few_minutes() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= NUM_WORDS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())

    assert [link for link in links if not (document.parent / link).exists()] == []


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


def test_keys_exist() -> None:
    known = [key.path for key in list_keys(Config)]
    sections = "|".join(Config.model_fields)
    for document in DOCUMENTS[:2]:
        named = set(re.findall(rf"`((?:{sections})\.[a-z_.]+)(?: = [^`]*)?`", document.read_text()))
        assert named
        assert {name for name in named if not any(f"{key}.".startswith(f"{name}.") for key in known)} == set()
