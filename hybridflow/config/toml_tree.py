"""Raw configuration values from TOML files and `--set`, before any section looks at them.

Files are laid over each other left to right: tables merge, everything else (lists included) is replaced. For each value
the tree remembers who set it, so that an error can name the file.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridflow.errors import ConfigError

KeyPath = tuple[str | int, ...]


def format_key_path(key_path: KeyPath) -> str:
    """`("warmup", "stages", 0, "name")` -> `warmup.stages.0.name`, the spelling that `--set` takes."""
    return ".".join(str(part) for part in key_path)


@dataclass
class TomlTree:
    """Nested tables, with the source of each value."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[KeyPath, str] = field(default_factory=dict)
    """Key path of each value that is not a table -> the file or `--set` that set it last."""

    def overlay(self, table: dict[str, Any], source: str) -> None:
        """Lay `table` over what is there."""
        self._merge(self.values, table, (), source)

    def set_value(self, assignment: str) -> None:
        """Apply one `a.b.0.c=value`. The value is read as TOML; what is not TOML is taken as a bare string.

        Raises ConfigError if the assignment has no `=`, or walks through something that is not a table or a list.
        """
        source = f"--set {assignment}"
        dotted, equals, text = assignment.partition("=")
        keys = [key.strip() for key in dotted.split(".")]
        if not equals or not all(keys):
            raise ConfigError(
                f"{source}: not an assignment. Write --set section.key=value, e.g. --set train.num_steps=5"
            )
        self._place(keys, parse_value(text.strip(), source), source)

    def source_of(self, key_path: KeyPath) -> str | None:
        """Who set the value at `key_path`, or the nearest table or list above it; None where it is a default."""
        for length in range(len(key_path), 0, -1):
            if key_path[:length] in self.sources:
                return self.sources[key_path[:length]]
        return None

    def _merge(self, base: dict[str, Any], table: dict[str, Any], prefix: KeyPath, source: str) -> None:
        for key, value in table.items():
            key_path = (*prefix, key)
            if isinstance(value, dict):
                if not isinstance(base.get(key), dict):
                    base[key] = {}
                    self._forget(key_path)
                if not value:
                    self.sources[key_path] = source
                self._merge(base[key], value, key_path, source)
            else:
                base[key] = value
                self._forget(key_path)
                self.sources[key_path] = source

    def _forget(self, key_path: KeyPath) -> None:
        """Drop the sources at and below a value that is being replaced."""
        for known in [known for known in self.sources if known[: len(key_path)] == key_path]:
            del self.sources[known]

    def _place(self, keys: Sequence[str], value: Any, source: str) -> None:
        node: Any = self.values
        key_path: KeyPath = ()
        for position, key in enumerate(keys):
            last = position == len(keys) - 1
            if isinstance(node, list):
                index = _list_index(key, node, key_path, source)
                key_path = (*key_path, index)
                if last:
                    node[index] = value
                else:
                    node = node[index]
            elif isinstance(node, dict):
                key_path = (*key_path, key)
                if last:
                    node[key] = value
                elif key not in node and keys[position + 1].isdigit():
                    where = format_key_path(key_path)
                    raise ConfigError(
                        f"{source}: no file sets the list {where}, so it has no item {keys[position + 1]}. "
                        f"Set it whole: --set '{where}=[...]'"
                    )
                else:
                    node = node.setdefault(key, {})
            else:
                where = format_key_path(key_path)
                raise ConfigError(
                    f"{source}: {where} is the value {node!r}, not a table. Set {where} itself, or remove it"
                )
        self._forget(key_path)
        self.sources[key_path] = source


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of one file. Raises ConfigError with file, line and column if it is missing or is no TOML."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist{_near_files(path)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_describe_syntax_error(path, text, str(error))) from None


def parse_value(text: str, source: str) -> Any:
    """`5` -> 5, `1e-6` -> 1e-06, `true` -> True, `[1, 2]` -> a list, `"5"` -> "5"; `Qwen3-8B` -> "Qwen3-8B"."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text[:1] in ("[", "{", '"', "'"):
            raise ConfigError(
                f"{source}: the value begins like TOML but is not: {error}. Mind the shell's quotes"
            ) from None
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _list_index(key: str, items: list[Any], key_path: KeyPath, source: str) -> int:
    where = format_key_path(key_path)
    if not key.isdigit():
        raise ConfigError(f"{source}: {where} is a list; {key!r} is no index. Write e.g. {where}.0")
    if int(key) >= len(items):
        raise ConfigError(f"{source}: {where} has {len(items)} items, so no item {key}; the first is {where}.0")
    return int(key)


def _describe_syntax_error(path: Path, text: str, message: str) -> str:
    found = re.search(r"^(.*) \(at line (\d+), column (\d+)\)$", message)
    if found is None:
        return f"{path}: not TOML: {message}"
    what, line, column = found[1], int(found[2]), int(found[3])
    excerpt = text.splitlines()[line - 1] if line <= len(text.splitlines()) else ""
    return f"{path}:{line}:{column}: not TOML: {what}\n    {excerpt}\n    {' ' * (column - 1)}^"


def _near_files(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {folder}"
    present = sorted(file.name for file in folder.glob("*.toml"))
    near = difflib.get_close_matches(path.name, present, n=3, cutoff=0.5) or present[:5]
    return f". Nearest in {folder}: {', '.join(near)}" if near else f": {folder} holds no .toml file"
