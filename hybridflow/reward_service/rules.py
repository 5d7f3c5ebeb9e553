"""The verifiers of `hybridflow.rewards`, as a scoring process builds them."""

from __future__ import annotations

from hybridflow.reward_service.scorer import Verify
from hybridflow.rewards.registry import verify

BUILD_RULES = "hybridflow.reward_service.rules:build_verify"
"""For `Setup.build_verify`."""


def build_verify() -> Verify:
    """Scores by rule, chosen by data source and ability of each request."""
    return verify
