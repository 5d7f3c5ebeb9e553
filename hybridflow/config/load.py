"""Reads a configuration: TOML files laid over each other, `--set` on top, validated once, dumped as it was resolved."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from hybridflow.config.explain import explain
from hybridflow.config.paths import resolve_paths
from hybridflow.config.toml_tree import TomlTree, read_file
from hybridflow.errors import ConfigError

Root = TypeVar("Root", bound=BaseModel)


def load_config(
    paths: Sequence[Path], overrides: Sequence[str], root: type[Root], *, paths_must_exist: bool = False
) -> Root:
    """The validated configuration.

    `paths`, TOML or the resolved.json of a run, are laid over each other left to right: tables merge, lists are
    replaced. `overrides`, `a.b.0.c=value` each, are applied in order. Relative paths: see `paths.py`.
    Raises ConfigError that lists every problem found: key path, value, source, rule and remedy.
    """
    tree = read_tree(paths, overrides)
    resolve_paths(tree, root, paths, must_exist=paths_must_exist)
    try:
        return root.model_validate(tree.values)
    except ValidationError as error:
        raise ConfigError(explain(error, tree, root)) from error


def read_tree(paths: Sequence[Path], overrides: Sequence[str]) -> TomlTree:
    """Files and overrides laid over each other, not validated. Raises ConfigError for what cannot be read."""
    tree = TomlTree()
    for path in paths:
        tree.overlay(read_file(path), str(path))
    for assignment in overrides:
        tree.set_value(assignment)
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
