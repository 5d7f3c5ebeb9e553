"""What one item may cost, and which code scores it: what a scoring process is told at its start."""

from __future__ import annotations

from typing import Any

import msgspec

from hybridflow.config.reward_sections import RewardSection
from hybridflow.environment import named


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on one item. Whatever goes above one costs that item its verdict, and nothing else."""

    cpu_s: float = 10.0
    """CPU seconds of the scoring process."""
    wall_s: float = 30.0
    """Seconds by the clock, for code that waits or is stopped; above `cpu_s`, as other processes use the cores too."""
    memory_mib: int = 4096
    """Address space of the scoring process: libraries included, of which many are mapped and never touched."""


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """The first frame to a scoring process."""

    build_verify: str
    """"module:function"; called once with `arguments`, it returns the function (ScoreRequest) -> Verdict."""
    arguments: dict[str, Any] = {}
    limits: Limits = Limits()
    environment: dict[str, str] = {}
    """Variables that verifiers need beside those that every process of a run gets."""


def setup_of(section: RewardSection, build_verify: str, **arguments: Any) -> Setup:
    """What the scoring processes of a run are told: code, its arguments, limits and variables."""
    limits = Limits(
        cpu_s=section.cpu_limit_s, wall_s=section.item_timeout_s, memory_mib=int(section.memory_limit_gib * 1024)
    )
    variables = named(section.environment, "reward.environment")
    return Setup(build_verify=build_verify, arguments=arguments, limits=limits, environment=variables)
