"""The folder of a run: how a new run never overwrites an old one, and how only the same run is continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from hybridflow.config.load import dump_resolved
from hybridflow.config.sections import RunSection
from hybridflow.errors import CheckpointError, ConfigError


class RunConfig(Protocol):
    """A configuration with a section `run`."""

    @property
    def run(self) -> RunSection: ...


class RunFolder:
    """Paths inside `<run.directory>/<run.name>` that every kind of run has."""

    def __init__(self, config: RunConfig, may_change: tuple[str, ...]) -> None:
        """`may_change`: beginnings of the keys that a resumed run may set otherwise; all others decide its numbers."""
        self._directory = config.run.directory
        self._may_change = may_change
        self.path = Path(config.run.directory) / config.run.name
        self.resolved = self.path / "resolved.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.initial_model = self.path / "initial_model"
        self.hf_export = self.path / "hf"
        self.logs = self.path / "logs"
        self.summary = self.path / "summary.json"

    def create(self, config: BaseModel) -> Path | None:
        """Makes the folder anew. One that is there is renamed, not deleted; returns its new path.

        Raises ConfigError if the file system refuses.
        """
        moved: Path | None = None
        try:
            if self.path.exists():
                number = 1
                while (moved := self.path.with_name(f"{self.path.name}.{number}")).exists():
                    number += 1
                self.path.rename(moved)
            self.path.mkdir(parents=True)
            dump_resolved(config, self.resolved)
        except OSError as error:
            raise ConfigError(
                f"run.directory = {self._directory!r}: cannot make the run folder {self.path}: {error}"
            ) from error
        return moved

    def reopen(self, config: BaseModel) -> None:
        """Takes over the settings that may change, once `check_same_run` finds nothing else changed."""
        self.check_same_run(config)
        dump_resolved(config, self.resolved)

    def check_same_run(self, config: BaseModel) -> None:
        """Checks that `--resume` continues the run that is here.

        Raises CheckpointError if there is no run, and ConfigError if a setting differs that would change its numbers.
        """
        if not self.resolved.is_file():
            raise CheckpointError(f"nothing to resume: {self.path} holds no run. Start it without --resume")
        before = self.comparable(_flatten(self._read_resolved()))
        now = self.comparable(_flatten(config.model_dump(mode="json")))
        differing = [
            f"{key}: was {before.get(key)!r}, is {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not key.startswith(self._may_change)
        ]
        if differing:
            raise ConfigError(
                f"--resume of {self.path} with other settings:\n  "
                + "\n  ".join(differing)
                + "\nUse the same config and --set, or start another run with --set run.name=..."
            )

    def comparable(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings of a run, by dotted key, with what an empty one stands for filled in."""
        return settings

    def _read_resolved(self) -> Any:
        try:
            return json.loads(self.resolved.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"nothing to resume: {self.resolved} cannot be read: {error}. Restore it, or start without --resume"
            ) from error


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested tables by dotted key; lists count as leaves."""
    if not isinstance(value, dict):
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for key, inner in value.items():
        leaves |= _flatten(inner, f"{prefix}.{key}" if prefix else key)
    return leaves
