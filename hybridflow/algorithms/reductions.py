"""Reductions of metrics: from tokens to one number of an optimizer step, from several steps to that of an RL step.

A part of the objective says so once, with a `Reduction` beside the metric's name; its values travel as a dict by that
name: values per token -> sums and maxima of a micro-batch -> of an optimizer step -> `UpdateReport.metrics`.

Shape legend: N counted tokens of one micro-batch on this rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hybridflow.types import UpdateMetric

STALENESS = "staleness"
"""Column with the age of each token, in policy versions."""
FIRST = "first"
"""Column with 1 at the first counted token of each sequence and 0 at the others."""
TOKENS, SEQUENCES = "tokens", "sequences"
"""Sum under which the number of counted tokens travels; of one staleness under `tokens/<age>`;
and that of the number of sequences with one."""


@dataclass(frozen=True)
class Reduction:
    """The reduction of one metric's values, one per token.

    Of the optimizer steps of an RL step, means are joined by their tokens, and of maxima the largest is taken.
    """

    kind: Literal["mean", "max", "effective_size"]
    """Over all counted tokens of an optimizer step. The effective size of weights w is (sum of w)^2 / sum of w^2 as a
    share of their number n: 1 where all are equal, 1/n where one alone is above 0 (Kish), 0 where none is."""
    of_sequences: bool = False
    """Over sequences, not tokens: of each the value at its first counted token. Not for maxima or by staleness."""
    by_staleness: bool = False
    """Apart for each age of tokens: `<name>` for those of the present policy, `<name>/staleness_<k>` for others."""
    with_max: bool = False
    """Whether the RL step tells, of a mean, the largest of its optimizer steps too, as `<name>_max`."""
    of_each_update: bool = True
    """It stands in each optimizer step's line of updates.jsonl; otherwise only in the RL step's metrics."""


class ReducedTokens(NamedTuple):
    """Scalars of a micro-batch by name; the same names on every rank."""

    sums: dict[str, Tensor]
    maxima: dict[str, Tensor]


def reduce_tokens(
    values: Mapping[str, Tensor],
    rules: Mapping[str, Reduction],
    logprobs_N: Tensor,
    staleness_N: Tensor | None,
    num_ages: int,
    first_N: Tensor | None = None,
) -> ReducedTokens:
    """Sums and maxima over the tokens of a micro-batch, with the numbers of tokens that the means are over."""
    sums = {TOKENS: torch.tensor(float(logprobs_N.numel()), device=logprobs_N.device)}
    maxima: dict[str, Tensor] = {}
    for name, values_N in values.items():
        rule = rules[name]
        for age in range(num_ages if rule.by_staleness else 1):
            chosen = values_N.detach()
            if rule.of_sequences:
                assert first_N is not None
                chosen = chosen * first_N
                sums[SEQUENCES] = first_N.sum()
            if rule.by_staleness:
                assert staleness_N is not None
                is_of_age_N = staleness_N == age
                chosen = chosen[is_of_age_N]
                sums[_count_of(rule, age)] = is_of_age_N.sum()
            if rule.kind != "max":
                sums[_name_at(name, age)] = chosen.sum()
                if rule.kind == "effective_size":
                    sums[_squares_of(name, age)] = chosen.square().sum()
            else:
                maxima[_name_at(name, age)] = chosen.max() if chosen.numel() else chosen.new_zeros(())
    return ReducedTokens(sums, maxima)


def build_update_metrics(
    rules: Mapping[str, Reduction], sums: Mapping[str, float], maxima: Mapping[str, float], num_ages: int
) -> dict[str, UpdateMetric]:
    """Metrics of an optimizer step from its sums and maxima over all micro-batches and ranks.

    What is reduced by staleness is absent for ages of which no token counted; for the present policy it is
    not-a-number then, and of the RL step alone.
    """
    metrics: dict[str, UpdateMetric] = {}
    for name, rule in rules.items():
        for age in range(num_ages if rule.by_staleness else 1):
            count = sums[_count_of(rule, age)]
            if rule.by_staleness and age and not count:
                continue
            is_empty = rule.by_staleness and not count
            at_age = _name_at(name, age)
            if rule.kind == "max":
                found = maxima[at_age]
            elif rule.kind == "mean":
                found = sums[at_age] / max(count, 1)
            else:
                squares = sums[_squares_of(name, age)]
                found = sums[at_age] ** 2 / (count * squares) if squares else 0.0
            metrics[at_age] = UpdateMetric(
                value=math.nan if is_empty else found,
                num_tokens=int(count),
                kind="max" if rule.kind == "max" else "mean",
                with_max=rule.with_max,
                of_each_update=rule.of_each_update and not is_empty,
            )
    return metrics


def _name_at(name: str, age: int) -> str:
    return f"{name}/staleness_{age}" if age else name


def _squares_of(name: str, age: int) -> str:
    return f"{_name_at(name, age)}/squares"


def _count_of(rule: Reduction, age: int) -> str:
    if rule.of_sequences:
        return SEQUENCES
    return f"{TOKENS}/{age}" if rule.by_staleness else TOKENS
