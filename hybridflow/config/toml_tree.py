"""Raw configuration values from TOML files and `--set`, before any section looks at them.

Files are laid over each other left to right: tables merge, everything else (lists included) is replaced. For each value
the tree remembers who set it, so that an error can name the file.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridflow.errors import ConfigError
from hybridflow.reading import Unreadable, parse_json, parse_toml
from hybridflow.reading.bounded_toml import MAX_BYTES, check_parts

KeyPath = tuple[str | int, ...]
SHOWN_CHARS = 120
"""Characters shown of an assignment on the command line, or a line of a file."""
MAX_INDEX_DIGITS = 9


def format_key_path(key_path: KeyPath) -> str:
    """`("warmup", "stages", 0, "name")` -> `warmup.stages.0.name`, the spelling that `--set` takes."""
    return ".".join(str(part) for part in key_path)


def format_value(value: Any) -> str:
    """Text, number, truth value or a list of these as TOML; None, which TOML has not, as "empty"."""
    if value is None:
        return "empty"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{value:.1f}"
    return json.dumps(value, ensure_ascii=False)


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
        source = f"--set {assignment if len(assignment) <= SHOWN_CHARS else assignment[:SHOWN_CHARS] + '...'}"
        dotted, equals, text = assignment.partition("=")
        keys = [key.strip() for key in dotted.split(".")]
        if not equals or not all(keys):
            raise ConfigError(
                f"{source}: not an assignment. Write --set section.key=value, e.g. --set train.num_steps=5"
            )
        try:
            check_parts(len(keys), dotted)
        except Unreadable as error:
            raise ConfigError(f"{source}: {error}") from error
        self._place(keys, parse_value(text.strip(), source), source)

    def underlay(self, key: str, value: Any, source: str) -> bool:
        """Sets a value that nobody has set. False, and nothing is done, where somebody has."""
        *tables, last = key.split(".")
        node: Any = self.values
        for table in tables:
            node = node.setdefault(table, {})
            if not isinstance(node, dict):
                return False
        if last in node:
            return False
        node[last] = value
        self.sources = {(*tables, last): source, **self.sources}  # whoever set a value of the same table has the say
        return True

    def value_at(self, key_path: KeyPath) -> Any:
        """The value, table or list at this path; None where there is none."""
        node: Any = self.values
        for key in key_path:
            if isinstance(node, list):
                node = node[int(key)]
            else:
                node = node.get(key) if isinstance(node, dict) else None
        return node

    def source_of(self, key_path: KeyPath) -> str | None:
        """Who set the value at `key_path`, or the nearest table or list above it; of a table, who set the last value
        in it. None where it is a default."""
        for length in range(len(key_path), 0, -1):
            if key_path[:length] in self.sources:
                return self.sources[key_path[:length]]
        below = [source for known, source in self.sources.items() if known[: len(key_path)] == key_path]
        return below[-1] if below and key_path else None

    def _merge(self, base: dict[str, Any], table: dict[str, Any], prefix: KeyPath, source: str) -> None:
        for key, value in table.items():
            key_path = (*prefix, key)
            if isinstance(value, dict):
                if not isinstance(base.get(key), dict):
                    self._forget(key_path, base.get(key))
                    base[key] = {}
                if not value:
                    self.sources[key_path] = source
                self._merge(base[key], value, key_path, source)
            else:
                self._forget(key_path, base.get(key))
                base[key] = value
                self.sources[key_path] = source

    def _forget(self, key_path: KeyPath, replaced: Any) -> None:
        """Drop the sources at and below a value that is being replaced."""
        self.sources.pop(key_path, None)
        if isinstance(replaced, dict | list):
            for known in [known for known in self.sources if known[: len(key_path)] == key_path]:
                del self.sources[known]

    def _place(self, keys: Sequence[str], value: Any, source: str) -> None:
        node: Any = self.values
        key_path: KeyPath = ()
        replaced: Any = None
        for position, key in enumerate(keys):
            last = position == len(keys) - 1
            if isinstance(node, list):
                index = _list_index(key, node, key_path, source)
                key_path = (*key_path, index)
                if last:
                    replaced, node[index] = node[index], value
                else:
                    node = node[index]
            elif isinstance(node, dict):
                key_path = (*key_path, key)
                if last:
                    replaced, node[key] = node.get(key), value
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
        self._forget(key_path, replaced)
        self.sources[key_path] = source


def read_file(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, or of the resolved.json of a run.

    Raises ConfigError with file, line and column if it is missing or is neither.
    """
    text = _read_text(path)
    try:
        if path.suffix.lower() != ".json":
            return parse_toml(text)
        tables = parse_json(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_describe_syntax_error(path, text, str(error))) from None
    except Unreadable as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}: not the resolved.json of a run. Name one, or a .toml file")
    return tables


def _read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist{_near_files(path)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}") from None


def parse_value(text: str, source: str) -> Any:
    """`5` -> 5, `1e-6` -> 1e-06, `true` -> True, `[1, 2]` -> a list, `"5"` -> "5"; `Qwen3-8B` -> "Qwen3-8B"."""
    try:
        parsed = parse_toml(f"value = {text}")
    except Unreadable as error:
        raise ConfigError(f"{source}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        if text[:1] in ("[", "{", '"', "'"):
            raise ConfigError(
                f"{source}: the value begins like TOML but is not: {error}. Mind the shell's quotes"
            ) from None
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _list_index(key: str, items: list[Any], key_path: KeyPath, source: str) -> int:
    where = format_key_path(key_path)
    if not (key.isascii() and key.isdigit()):
        raise ConfigError(f"{source}: {where} is a list; {key[:SHOWN_CHARS]!r} is no index. Write e.g. {where}.0")
    if len(key) > MAX_INDEX_DIGITS or int(key) >= len(items):
        raise ConfigError(f"{source}: {where} has {len(items)} items, so no item {key[:20]}; the first is {where}.0")
    return int(key)


def _describe_syntax_error(path: Path, text: str, message: str) -> str:
    found = re.search(r"^(.*) \(at line (\d+), column (\d+)\)$", message)
    if found is None:
        return f"{path}: not TOML: {message}"
    what, line, column = found[1], int(found[2]), int(found[3])
    lines = text.splitlines()
    excerpt = lines[line - 1] if line <= len(lines) else ""
    start = max(0, column - SHOWN_CHARS)
    shown = excerpt[start : column + SHOWN_CHARS]
    return f"{path}:{line}:{column}: not TOML: {what}\n    {shown}\n    {' ' * (column - 1 - start)}^"


def _near_files(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {folder}"
    present = sorted(file.name for file in folder.glob("*.toml"))
    near = difflib.get_close_matches(path.name, present, n=3, cutoff=0.5) or present[:5]
    return f". Nearest in {folder}: {', '.join(near)}" if near else f": {folder} holds no .toml file"
