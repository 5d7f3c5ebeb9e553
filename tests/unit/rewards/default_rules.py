"""The rules of a run without `[reward.rules]`."""

from __future__ import annotations

from hybridflow.config.reward_sections import RulesSection
from hybridflow.rewards.registry import Registry

RULES = Registry(RulesSection())
verify = RULES.verify
