"""The files of a run, before anything about it is checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hybridflow.config.conflicts import find_conflicts
from hybridflow.config.explain import find_keys, name_setters
from hybridflow.config.load import load_partly
from hybridflow.config.paths import add_module_folders
from hybridflow.config.presets import value_in
from hybridflow.config.sections import Config
from hybridflow.config.toml_tree import TomlTree


def load_run(files: Sequence[Path], overrides: Sequence[str]) -> tuple[Config | None, list[str]]:
    """(the configuration as far as it is right, what is wrong with it)."""
    config, problems, tree = load_partly(files, overrides, Config)
    if isinstance(config, Config):
        known = "\n".join(problems)
        rules = [
            rule
            for rule in find_conflicts(config)
            if rule.partition(" Remedy:")[0] not in known and not _rests_on_left_out(rule, config, tree)
        ]
        problems += [f"{rule}{_tell_setters(rule, tree)}" for rule in rules]
        found = {
            name: add_module_folders(getattr(config, name), files) for name in ("reward", "algorithm", "curriculum")
        }
        config = config.model_copy(update=found)
    return config, problems


def _rests_on_left_out(rule: str, config: Config, tree: TomlTree) -> bool:
    """Whether a rule names a key whose value was left out with what is wrong: it is on a default that nobody chose."""
    keys = [key for key in find_keys(rule, Config) if not any(part.isdigit() for part in key.split("."))]
    given = {key: tree.value_at(tuple(key.split("."))) for key in keys}
    return any(value is not None and value != value_in(config, key) for key, value in given.items())


def _tell_setters(rule: str, tree: TomlTree) -> str:
    setters = name_setters(rule, tree, Config)
    return f" (set by: {setters})" if setters else ""
