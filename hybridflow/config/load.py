"""Reads a configuration: TOML files laid over each other, `--set` on top, validated once, dumped as it was resolved.

For `check` it is also read partly: as much as is right, so that a wrong key does not hide what else is wrong.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from hybridflow.config.conflicts import SECTIONS_ALONE
from hybridflow.config.explain import explain, explain_rules
from hybridflow.config.part_keys import find_idle_keys
from hybridflow.config.paths import resolve_paths
from hybridflow.config.presets import apply_preset
from hybridflow.config.toml_tree import TomlTree, read_file
from hybridflow.errors import ConfigError

Root = TypeVar("Root", bound=BaseModel)


def load_config(
    paths: Sequence[Path], overrides: Sequence[str], root: type[Root], *, paths_must_exist: bool = False
) -> Root:
    """The validated configuration.

    `paths`, TOML or the resolved.json of a run, are laid over each other left to right: tables merge, lists are
    replaced. `overrides`, `a.b.0.c=value` each, are applied in order. A preset lies beneath both. Relative paths: see
    `paths.py`.
    Raises ConfigError that lists every problem found: key path, value, source, rule and remedy.
    """
    return load_with_sources(paths, overrides, root, paths_must_exist=paths_must_exist)[0]


def load_with_sources(
    paths: Sequence[Path], overrides: Sequence[str], root: type[Root], *, paths_must_exist: bool = False
) -> tuple[Root, TomlTree]:
    """The same, and the values that somebody set, each with who did."""
    tree = read_tree(paths, overrides, root)
    resolve_paths(tree, root, paths, must_exist=paths_must_exist)
    try:
        config = root.model_validate(tree.values)
    except ValidationError as error:
        raise ConfigError(explain(error, tree, root)) from error
    if rules := _find_idle(config, tree):
        raise ConfigError(explain_rules(rules))
    return config, tree


def _find_idle(config: BaseModel, tree: TomlTree) -> list[str]:
    """Rules about who set which value, of a configuration that has an algorithm."""
    return list(find_idle_keys(config, tree)) if "algorithm" in type(config).model_fields else []


def read_tree(paths: Sequence[Path], overrides: Sequence[str], root: type[BaseModel]) -> TomlTree:
    """Files and overrides laid over each other and over the preset that they name, not validated.

    Raises ConfigError for what cannot be read.
    """
    tree = TomlTree()
    for path in paths:
        tree.overlay(read_file(path), str(path))
    for assignment in overrides:
        tree.set_value(assignment)
    apply_preset(tree, root)
    return tree


def dump_resolved(config: BaseModel, path: Path) -> None:
    """Write every value, defaults included, as JSON; a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8") as stream:
            json.dump(config.model_dump(mode="json"), stream, indent=2, ensure_ascii=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


MAX_ROUNDS = 5


class Partial(NamedTuple):
    """A configuration as far as it is right."""

    config: Any
    """A Root, with the default in the place of each value that was left out; None where there is none."""
    problems: list[str]
    """Problems with keys, values and paths, for the user."""
    tree: TomlTree
    """Who set which value."""


def load_partly(paths: Sequence[Path], overrides: Sequence[str], root: type[BaseModel]) -> Partial:
    """The configuration that `load_config` reads, or what is left of it without the keys and values that are wrong.

    Raises ConfigError for a file that cannot be read, or an override that is none.
    """
    tree = read_tree(paths, overrides, root)
    problems: list[str] = []
    try:
        resolve_paths(tree, root, paths, must_exist=True)
    except ConfigError as error:
        problems.append(str(error))
    try:
        config = root.model_validate(tree.values)
    except ValidationError as error:
        problems.append(explain(error, tree, root))
        return Partial(_validate_rest(tree.values, root, error), problems, tree)
    if rules := _find_idle(config, tree):
        problems.append(explain_rules(rules))
    return Partial(config, problems, tree)


def _validate_rest(values: dict[str, Any], root: type[BaseModel], error: ValidationError) -> BaseModel | None:
    left = copy.deepcopy(values)
    for _ in range(MAX_ROUNDS):
        for problem in error.errors(include_url=False):
            _drop(left, problem["loc"])
        try:
            return root.model_validate(left, context=SECTIONS_ALONE)
        except ValidationError as again:
            error = again
    return None  # a key is missing


def _drop(values: Any, location: tuple[str | int, ...]) -> None:
    """Removes the deepest value of `location` that is there in a table; nothing where there is none."""
    holder: tuple[dict[str, Any], str] | None = None
    for part in location:
        is_there = (isinstance(values, dict) and part in values) or (
            isinstance(values, list) and isinstance(part, int) and part < len(values)
        )
        if not is_there:
            continue  # the tag of a union's member, or a key that is missing
        if isinstance(values, dict):
            holder = (values, str(part))
        values = values[part]  # type: ignore[index]
    if holder is not None:
        table, key = holder
        del table[key]
