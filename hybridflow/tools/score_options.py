"""The reward that `hybridflow score` uses: `[reward]` of a configuration, and what the command line says over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from hybridflow.config.load import load_config
from hybridflow.config.paths import add_module_folders
from hybridflow.config.reward_sections import RewardSection
from hybridflow.config.section import hide_secrets
from hybridflow.errors import ConfigError

JUDGE_OPTIONS = {
    "endpoints": "--judge-url",
    "model": "--judge-model",
    "num_votes": "--judge-votes",
    "max_concurrency": "--judge-concurrency",
    "deadline_s": "--judge-deadline-s",
    "cache_path": "--judge-cache",
}
DEADLINE_S = 120.0
"""Deadline of a verdict of the judge, where nothing else is said: nobody trains meanwhile."""


class RewardFile(BaseModel):
    """A training configuration of which only `[reward]` is read."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    reward: RewardSection = RewardSection()


class ScoreOptions(NamedTuple):
    """As they stand on the command line; None, or empty, where not given."""

    files: Sequence[Path]
    overrides: Sequence[str]
    verifiers: Sequence[str]
    """Functions of every row, in place of rules and functions of the configuration."""
    compat: str | None
    judge: dict[str, Any]


def build_reward(options: ScoreOptions) -> RewardSection:
    """The checked section; options win over files. ConfigError naming key or option, the value and the rule."""
    reward = load_config(options.files, options.overrides, RewardFile).reward
    judge = {name: value for name, value in options.judge.items() if value is not None}
    if not options.files:
        judge = {"deadline_s": DEADLINE_S} | judge
    changes: dict[str, Any] = {}
    if options.verifiers:
        changes = {"functions": [{"call": call} for call in options.verifiers], "rules": {}}
    if options.compat is not None:
        changes["rules"] = reward.rules.model_dump() | changes.get("rules", {}) | {"compat": options.compat}
    settings = reward.model_dump() | changes
    settings["judge"] = reward.judge.model_dump() | judge
    try:
        return add_module_folders(RewardSection.model_validate(settings), options.files)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error))) from error


def _explain(error: ValidationError) -> list[str]:
    problems = []
    for found in error.errors():
        told = found["msg"].removeprefix("Value error, ")
        option = {"judge": JUDGE_OPTIONS.get(str(found["loc"][-1]), "judge"), "functions": "--verifier"}.get(
            str(found["loc"][0]) if found["loc"] else "", "--verifier"
        )
        problems.append(
            f"{option} {hide_secrets(str(found['input']))}: {told}" if found["loc"] else f"{option}: {told}"
        )
    return problems
