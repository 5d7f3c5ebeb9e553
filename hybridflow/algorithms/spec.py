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
    corrections: list[str] = []
    """Weights per token of the first term, which multiply."""
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
    """The algorithm that the sections `algorithm` and `reward` set."""
    section = config.algorithm
    return AlgorithmSpec(
        filters=["too_few_known", "known_share", *section.filter],
        advantage=section.advantage,
        masks=["fresh_tokens"] if section.mask_stale_tokens else [],
        objective=policy_spec(section, max_new_tokens=config.rollout.max_new_tokens),
        parameters=section.model_dump() | {"min_known_fraction": config.reward.min_known_fraction},
    )


def policy_spec(section: AlgorithmSection, max_new_tokens: int | None = None) -> ObjectiveSpec:
    """The loss and aggregation that the section names, what is added to the loss and weighs it, and what is told.

    `max_new_tokens` bounds a completion; it is the constant normaliser where the section does not set one, and may be
    None where that is not asked for.
    """
    kl, correction = section.kl, section.rollout_correction
    parameters = section.model_dump() | correction.model_dump()
    if section.normaliser_tokens is None:
        parameters["normaliser_tokens"] = max_new_tokens
    terms = [section.loss]
    terms += ["reference_kl"] if kl.place == "loss" else []
    terms += ["entropy"] if section.entropy_coefficient else []
    return ObjectiveSpec(
        terms=terms,
        aggregation=section.aggregation,
        corrections=correction.parts,
        measures=[
            *("entropy", "policy_ratio", "engine_mismatch"),
            *(["reference_distance"] if kl.is_on else []),
            *section.metrics,
        ],
        parameters=parameters | {"kl_coefficient": kl.coefficient, "kl_estimator": kl.estimator},
    )


def supervised_spec(aggregation: str = "token_mean") -> ObjectiveSpec:
    """Negative log-likelihood of demonstrations, as a mean per token or first per sequence."""
    return ObjectiveSpec(terms=["nll"], aggregation=aggregation)
