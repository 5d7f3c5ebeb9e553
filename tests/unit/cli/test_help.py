"""Texts of `--help` are shown as they are written: a name in brackets would be taken for a style of the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from rich.text import Text

from hybridflow import cli


def walk(command: Any) -> Iterator[Any]:
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from walk(inner)


def test_nothing_of_a_help_text_is_lost() -> None:
    cli.mount_commands()
    commands = list(walk(typer.main.get_command(cli.app)))
    texts = [item.help.replace("\b", "") for command in commands for item in [command, *command.params] if item.help]
    assert len(texts) > 100
    assert [text for text in texts if Text.from_markup(text).plain != text] == []
