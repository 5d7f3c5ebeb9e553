"""The verifiers of `hybridflow.rewards`, as a scoring process builds them."""

from __future__ import annotations

from typing import Any

from hybridflow.config.reward_sections import RulesSection
from hybridflow.reward_service.scorer import Verify
from hybridflow.rewards.registry import Registry

BUILD_RULES = "hybridflow.reward_service.rules:build_verify"
"""For `Setup.build_verify`."""


def build_verify(rules: dict[str, Any] | None = None) -> Verify:
    """Scores by the rule that data source and ability of a request choose; `rules` holds `[reward.rules]`."""
    return Registry(RulesSection.model_validate(rules or {})).verify
