"""Algorithms as plain data: names of registered parts and their parameters. This is what travels to train workers."""

from __future__ import annotations

from typing import Any

import msgspec

from hybridflow.config.algorithm_section import AlgorithmSection
from hybridflow.config.sections import Config


class ObjectiveSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The loss of an optimizer step and what is measured along, as names in `registry.py`."""

    terms: list[str]
    """Losses per token that add up: the policy loss, a KL term, an entropy bonus."""
    aggregation: str
    measures: list[str] = []
    parameters: dict[str, Any] = {}
    """By the names of configuration keys; each part takes its own."""


class AlgorithmSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything between the verdicts of a step and its optimizer steps, as names in `registry.py`."""

    filters: list[str]
    """The first that gives a reason leaves a group out."""
    advantage: str
    masks: list[str] = []
    objective: ObjectiveSpec
    parameters: dict[str, Any] = {}
    """Keys of filters, advantage and masks."""


def algorithm_spec(config: Config) -> AlgorithmSpec:
    """GRPO with the changes of DAPO, as the sections `algorithm` and `reward` set it."""
    section = config.algorithm
    return AlgorithmSpec(
        filters=["too_few_known", "known_share", "same_reward"],
        advantage="group_relative",
        masks=["fresh_tokens"] if section.mask_stale_tokens else [],
        objective=policy_spec(section),
        parameters=section.model_dump() | {"min_known_fraction": config.reward.min_known_fraction},
    )


def policy_spec(section: AlgorithmSection) -> ObjectiveSpec:
    """The clipped objective with a mean over tokens, and what a step tells of it."""
    kl = section.kl
    return ObjectiveSpec(
        terms=["clip", *(["reference_kl"] if kl.place == "loss" else [])],
        aggregation="token_mean",
        measures=["entropy", "policy_ratio", "engine_mismatch", *(["reference_distance"] if kl.is_on else [])],
        parameters=section.model_dump() | {"kl_coefficient": kl.coefficient, "kl_estimator": kl.estimator},
    )


def supervised_spec(aggregation: str = "token_mean") -> ObjectiveSpec:
    """Negative log-likelihood of demonstrations, as a mean per token or first per sequence."""
    return ObjectiveSpec(terms=["nll"], aggregation=aggregation)
