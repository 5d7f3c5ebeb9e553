"""The folder of a run: what is in it, and how a new run never overwrites an old one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hybridflow.config.load import dump_resolved
from hybridflow.config.sections import Config
from hybridflow.errors import CheckpointError, ConfigError

# A resumed run may be longer, and be checkpointed, evaluated and tracked otherwise; all else decides its numbers.
MAY_CHANGE_ON_RESUME = ("run.directory", "train.num_steps", "eval", "checkpoint", "tracking", "reward.timeout_s")


class RunFolder:
    """Paths inside `<run.directory>/<run.name>`."""

    def __init__(self, config: Config) -> None:
        self.path = Path(config.run.directory) / config.run.name
        self.resolved = self.path / "resolved.json"
        self.metrics = self.path / "metrics.jsonl"
        self.warmup_metrics = self.path / "warmup_metrics.jsonl"
        self.completions = self.path / "completions.jsonl"
        self.eval_completions = self.path / "eval_completions.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.data = self.path / "data"
        self.initial_model = self.path / "initial_model"
        self.hf_export = self.path / "hf"
        self.logs = self.path / "logs"
        self.summary = self.path / "summary.json"

    def create(self, config: Config) -> Path | None:
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
                f"run.directory = {config.run.directory!r}: cannot make the run folder {self.path}: {error}"
            ) from error
        return moved

    def reopen(self, config: Config) -> None:
        """Takes over the settings that may change, once `check_same_run` finds nothing else changed."""
        self.check_same_run(config)
        dump_resolved(config, self.resolved)

    def check_same_run(self, config: Config) -> None:
        """Checks that `--resume` continues the run that is here.

        Raises CheckpointError if there is no run, and ConfigError if a setting differs that would change its numbers.
        """
        if not self.resolved.is_file():
            raise CheckpointError(f"nothing to resume: {self.path} holds no run. Start it without --resume")
        before = _flatten(json.loads(self.resolved.read_text()))
        now = _flatten(config.model_dump(mode="json"))
        differing = [
            f"{key}: was {before.get(key)!r}, is {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not key.startswith(MAY_CHANGE_ON_RESUME)
        ]
        if differing:
            raise ConfigError(
                f"--resume of {self.path} with other settings:\n  "
                + "\n  ".join(differing)
                + "\nUse the same config and --set, or start another run with --set run.name=..."
            )


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested tables by dotted key; lists count as leaves."""
    if not isinstance(value, dict):
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for key, inner in value.items():
        leaves |= _flatten(inner, f"{prefix}.{key}" if prefix else key)
    return leaves
