"""The verifiers of `hybridflow.rewards`, as a scoring process builds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hybridflow.config.reward_sections import FunctionSection, RewardSection, RulesSection
from hybridflow.reward_service.scorer import Verify
from hybridflow.rewards.registry import Registry

BUILD_RULES = "hybridflow.reward_service.rules:build_verify"
"""For `Setup.build_verify`."""


def build_verify(
    rules: dict[str, Any] | None = None,
    functions: Sequence[dict[str, Any]] = (),
    module_folders: Sequence[str] = (),
) -> Verify:
    """Scores by the functions of the run, or by the rule that data source and ability of a request choose.

    The arguments hold `[reward.rules]`, `[[reward.functions]]` and `reward.module_folders`.
    """
    own = [FunctionSection.model_validate(function) for function in functions]
    return Registry(RulesSection.model_validate(rules or {}), own, module_folders).verify


def rule_arguments(section: RewardSection) -> dict[str, Any]:
    """Arguments of `build_verify` that a configuration asks for."""
    return section.model_dump(include={"rules", "functions", "module_folders"})
