"""Presets: named sets of values, each with its source, that lie beneath what files and `--set` say.

The values are data, in presets.toml. A resolved.json holds every value already, so the preset that it names is not
applied again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

from pydantic import BaseModel

from hybridflow.config.toml_tree import KeyPath, TomlTree, format_value
from hybridflow.errors import ConfigError
from hybridflow.reading import parse_toml

Name = Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo", "qwenlong_l1", "qwenlong_l1_5"]
NAMES: tuple[str, ...] = get_args(Name)
KEY: KeyPath = ("algorithm", "preset")
Origin = Literal["P", "C", "ours"]
"""[P] a paper says so, [C] released code does so, [ours] was chosen here."""


@dataclass(frozen=True)
class PresetValue:
    """One value, and why it is this one."""

    key: str
    value: Any
    origin: Origin
    citation: str
    """Paper and place, file of the released code, or our reason."""

    @property
    def source(self) -> str:
        return f"[{self.origin}] {self.citation}"


@dataclass(frozen=True)
class Preset:
    """A name for values of several sections."""

    name: str
    title: str
    values: tuple[PresetValue, ...]
    left_open: dict[str, str] = field(default_factory=dict)
    """Keys that belong to it and have no published value -> what that means."""

    @property
    def source(self) -> str:
        """Who set a value, in messages."""
        return name_source(self.name)


def name_source(name: str) -> str:
    """A preset among files and `--set` as the setter of a value."""
    return f"preset {name}"


@cache
def read_preset(name: str) -> Preset:
    """The preset of that name. Raises ConfigError for one that does not exist."""
    if name not in NAMES:
        raise ConfigError(f"no preset {name!r}. Remedy: take one of {', '.join(NAMES)}")
    table = parse_toml((files("hybridflow.config") / "presets.toml").read_text(encoding="utf-8"))[name]
    values = tuple(PresetValue(key, *line) for key, line in table["values"].items())
    return Preset(name, table["title"], values, table.get("left_open", {}))


def apply_preset(tree: TomlTree, root: type[BaseModel]) -> None:
    """Lays the preset that `tree` names beneath it, where `root` is a configuration that has presets.

    Raises ConfigError where a resolved.json, which sets every key, would hide it.
    """
    algorithm = tree.values.get("algorithm")
    name = algorithm.get("preset") if isinstance(algorithm, dict) else None
    chosen_by = tree.source_of(KEY)
    if "algorithm" not in root.model_fields or name not in NAMES or is_resolved(chosen_by):
        return
    preset = read_preset(str(name))
    hidden: list[str] = []
    for value in preset.values:
        key_path = tuple(value.key.split("."))
        is_new = tree.underlay(value.key, value.value, preset.source)
        if not is_new and is_resolved(tree.source_of(key_path)) and tree.value_at(key_path) != value.value:
            hidden.append(f"{value.key} = {format_value(tree.value_at(key_path))} [{tree.source_of(key_path)}]")
    if hidden:
        raise ConfigError(
            f'algorithm.preset = "{name}" [{chosen_by}] lies beneath a file that sets every key, and would change '
            f"nothing of: {'; '.join(hidden)}. Remedy: begin from the .toml file of that run, or set the keys "
            f"themselves; their values: hybridflow config --preset {name}"
        )


def is_resolved(source: str | None) -> bool:
    """Whether who set a value is the resolved.json of a run."""
    return source is not None and source.lower().endswith(".json")


def value_in(config: Any, key: str) -> Any:
    """The value of a dotted key of a configuration; None below a section that is not there."""
    for part in key.split("."):
        config = None if config is None else getattr(config, part)
    return config
