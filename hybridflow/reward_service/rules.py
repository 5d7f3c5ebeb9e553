"""The verifiers of `hybridflow.rewards`, as a scoring process builds them."""

from __future__ import annotations

from typing import Any

from hybridflow.config.sections import RewardsSection
from hybridflow.reward_service.scorer import Verify
from hybridflow.rewards.registry import Registry

BUILD_RULES = "hybridflow.reward_service.rules:build_verify"
"""For `Setup.build_verify`."""


def build_verify(rewards: dict[str, Any] | None = None) -> Verify:
    """Scores by rule, chosen by data source and ability of each request; `rewards` holds the values of `[rewards]`."""
    return Registry(RewardsSection.model_validate(rewards or {})).verify
