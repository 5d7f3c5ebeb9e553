"""The command `hybridflow config`: keys with their meaning, examples, and what files come to."""

from __future__ import annotations

import json
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from hybridflow.config.keys import ITEM, Key, list_keys
from hybridflow.config.load import load_config, load_with_sources
from hybridflow.config.preset_text import compare_presets, list_sources, print_preset
from hybridflow.config.presets import NAMES, read_preset
from hybridflow.config.sections import Config
from hybridflow.data.naming import suggest
from hybridflow.errors import ConfigError
from hybridflow.observability.visible import visible
from hybridflow.tools.options import Overrides
from hybridflow.tools.sft_config import SftConfig

EXAMPLES = files("hybridflow.config") / "examples"


class Command(StrEnum):
    train = "train"
    sft = "sft"


ROOTS: dict[Command, type[BaseModel]] = {Command.train: Config, Command.sft: SftConfig}


def mount(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("config")(config)


def config(
    section: Annotated[str, typer.Argument(help="With --keys: a section or key, such as train.layout.")] = "",
    keys: Annotated[bool, typer.Option("--keys", help="Print every key: kind, default, unit, meaning.")] = False,
    example: Annotated[str | None, typer.Option(help="Print an example to begin with; `list` names them.")] = None,
    show: Annotated[
        list[Path] | None, typer.Option(help="Print what these files come to, defaults included; several or repeated.")
    ] = None,
    sources: Annotated[
        bool, typer.Option("--sources", help="With --show: each value that was set, and who set it.")
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(help="Print what a preset sets, each value with its source; `list` names them, `table` compares."),
    ] = None,
    set_: Overrides = None,
    of: Annotated[Command, typer.Option("--of", help="The command whose configuration is meant.")] = Command.train,
) -> None:
    """Print what can be configured, examples, and what files come to.

    \b
    hybridflow config --keys
    hybridflow config --keys train.layout
    hybridflow config --keys --of sft
    hybridflow config --example own-data > mine.toml
    hybridflow config --preset gspo
    hybridflow config --show configs/quickstart.toml mine.toml --set train.num_steps=5
    hybridflow config --show configs/quickstart.toml --set algorithm.preset=gspo --sources
    """
    asked = [keys, example is not None, preset is not None, bool(show)]
    if sum(asked) != 1 or (section and not keys) or (sources and not show):
        raise ConfigError(
            "hybridflow config: give one of --keys [SECTION], --example NAME, --preset NAME, --show FILE... [--sources]"
        )
    if keys:
        for key in find_keys(ROOTS[of], section):
            typer.echo("\n".join(key.lines()))
    elif example is not None:
        typer.echo(read_example(example), nl=False)
    elif preset == "list":
        typer.echo("\n".join(f"{name:14} {read_preset(name).title}" for name in NAMES))
    elif preset == "table":
        typer.echo("\n".join(compare_presets()))
    elif preset is not None:
        typer.echo("\n".join(print_preset(read_preset(preset))))
    elif sources:
        resolved, tree = load_with_sources(show or [], set_ or [], ROOTS[of])
        typer.echo("\n".join(map(visible, list_sources(resolved, tree))))
    else:
        resolved = load_config(show or [], set_ or [], ROOTS[of])
        shown = json.dumps(resolved.model_dump(mode="json"), indent=2, ensure_ascii=False)
        # Stays JSON: where a character cannot be seen, all that are not ASCII are written as JSON escapes.
        typer.echo(shown if visible(shown) == shown else json.dumps(json.loads(shown), indent=2))


def find_keys(root: type[BaseModel], section: str) -> list[Key]:
    """The keys of a section, or all. Raises ConfigError for one that does not exist, with the nearest."""
    found = list(list_keys(root))
    parts = [ITEM if part.isdigit() else part for part in section.split(".")] if section else []
    chosen = [key for key in found if key.path.split(".")[: len(parts)] == parts]
    if not chosen:
        names = {key.path for key in found}
        names |= {path.rsplit(".", count)[0] for path in names for count in range(1, path.count(".") + 1)}
        raise ConfigError(
            f"no section or key {section!r}{suggest(section, sorted(names))}. All: hybridflow config --keys"
        )
    return chosen


def list_examples() -> list[str]:
    """Their names."""
    return sorted(entry.name.removesuffix(".toml") for entry in EXAMPLES.iterdir() if entry.name.endswith(".toml"))


def read_example(name: str) -> str:
    """Its text, or with `list` the names of all. Raises ConfigError for one that does not exist."""
    names = list_examples()
    if name == "list":
        return "".join(f"{one}\n" for one in names)
    if name not in names:
        raise ConfigError(f"--example {name}: there is none{suggest(name, names)}. There are {', '.join(names)}")
    return (EXAMPLES / f"{name}.toml").read_text(encoding="utf-8")
