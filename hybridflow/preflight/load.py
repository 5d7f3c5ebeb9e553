"""The files of a run, before anything about it is checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hybridflow.config.conflicts import find_conflicts
from hybridflow.config.load import load_partly
from hybridflow.config.paths import add_module_folders
from hybridflow.config.sections import Config


def load_run(files: Sequence[Path], overrides: Sequence[str]) -> tuple[Config | None, list[str]]:
    """(the configuration as far as it is right, what is wrong with it)."""
    config, problems = load_partly(files, overrides, Config)
    if isinstance(config, Config):
        known = "\n".join(problems)
        problems += [rule for rule in find_conflicts(config) if rule.partition(" Remedy:")[0] not in known]
        found = {
            name: add_module_folders(getattr(config, name), files) for name in ("reward", "algorithm", "curriculum")
        }
        config = config.model_copy(update=found)
    return config, problems
