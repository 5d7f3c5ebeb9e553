"""The objective of an optimizer step: terms of the loss, their aggregation, and measures, built from plain data.

Shape legend: N counted tokens of one micro-batch on this rank, of all its sequences, in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hybridflow.algorithms.reductions import FIRST, STALENESS, ReducedTokens, Reduction, reduce_tokens
from hybridflow.algorithms.registry import AGGREGATIONS, CORRECTIONS, MEASURES, TERMS
from hybridflow.algorithms.spec import ObjectiveSpec
from hybridflow.algorithms.weights import WEIGHT_METRICS, measure_weights
from hybridflow.errors import ConfigError

ADVANTAGES = "advantages"
OLD_LOGPROBS = "old_logprobs"
REF_LOGPROBS = "ref_logprobs"
ENTROPY = "entropy"
COMPUTED = frozenset({OLD_LOGPROBS, REF_LOGPROBS, ENTROPY})
"""Columns that the trainer computes where a part asks for them; all others come from the engine and the driver.
`old_logprobs` are of the policy before the update; where that is the policy in update, they are its own, detached.
`ref_logprobs` are of the reference policy, in the distribution that tokens were drawn from, as all are; they are
measured before the update and come with the batch, and so may `old_logprobs`."""


class Rows(Protocol):
    """Rows of a micro-batch, for losses of whole sequences: `megatron_ext.packing.rows.Rows`. R rows."""

    @property
    def count_R(self) -> Tensor:
        """Counted tokens of each row, on all context parallel ranks."""
        ...

    @property
    def row_ids_R(self) -> Tensor:
        """Place of each row in the batch."""
        ...

    @property
    def group_ids_R(self) -> Tensor:
        """Number of its group in the batch."""
        ...

    def sum(self, values_N: Tensor) -> Tensor: ...

    def mean(self, values_N: Tensor) -> Tensor: ...

    def spread(self, values_R: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class TokenBatch:
    """A micro-batch as an objective sees it."""

    logprobs_N: Tensor
    """Log-probabilities by the policy in update, with graph, under the distribution that tokens were drawn from."""
    columns: Mapping[str, Tensor]
    """[N] each, those that the objective asked for, by name; without a graph, but for the entropy."""
    rows: Rows | None = None
    """The row of each token, with sums over whole rows; None where there is no micro-batch behind it."""


class TermValue(NamedTuple):
    """A loss per token with its graph, and metrics, a value per token each."""

    loss_N: Tensor
    metrics: Mapping[str, Tensor] = {}


class Aggregated(NamedTuple):
    """Sum of the loss over a micro-batch, and the whole number that this adds to the step's denominator."""

    loss: Tensor
    denominator: Tensor | int


class Term(Protocol):
    """One summand of the loss.

    A class with `of_sequences = True` gives each token the loss of its whole sequence, and goes with an aggregation
    whose class says `averages_sequences = True`.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that it reads."""
        ...

    @property
    def metrics(self) -> Mapping[str, Reduction]:
        """How each of its metrics is reduced, by full name (`policy/clip_fraction_low`)."""
        ...

    def __call__(self, tokens: TokenBatch) -> TermValue: ...


class Weights(NamedTuple):
    """A weight of each token's policy loss, without a graph, and metrics, a value per token each."""

    weight_N: Tensor
    metrics: Mapping[str, Tensor] = {}


class Correction(Protocol):
    """Weights for tokens that were not drawn by the policy before the update; `columns` and `metrics` as of a term."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def metrics(self) -> Mapping[str, Reduction]: ...

    def __call__(self, tokens: TokenBatch) -> Weights: ...


class Measure(Protocol):
    """Metrics that no gradient comes from; `columns` and `metrics` as of a term."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def metrics(self) -> Mapping[str, Reduction]: ...

    @property
    def first_pass_only(self) -> bool:
        """Whether it is of the policy that decoded, which only the first pass over a batch meets."""
        ...

    def __call__(self, tokens: TokenBatch) -> Mapping[str, Tensor]: ...


class Aggregation(Protocol):
    """From losses per token to a sum and a denominator."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    def __call__(self, loss_N: Tensor, tokens: TokenBatch) -> Aggregated: ...


class ObjectiveSums(NamedTuple):
    """One micro-batch's part of the step's loss, and of its metrics."""

    loss: Tensor
    denominator: Tensor | int
    metrics: ReducedTokens


@dataclass(frozen=True)
class Objective:
    """Loss and metrics of an optimizer step, called with one micro-batch after the other.

    `num_ages` is 1 + the largest staleness in the batch. The loss of the first term, the policy's, is multiplied by the
    product of what the corrections give; the other terms and the denominator are as without.
    """

    terms: tuple[Term, ...]
    aggregation: Aggregation
    corrections: tuple[Correction, ...] = ()
    measures: tuple[Measure, ...] = ()
    num_ages: int = 1

    @property
    def metrics(self) -> dict[str, Reduction]:
        """How each metric is reduced, by name."""
        parts = (*self.terms, *self.corrections, *self.measures)
        of_parts = {name: rule for part in parts for name, rule in part.metrics.items()}
        return of_parts | (WEIGHT_METRICS if self.corrections else {})

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that any part reads, those of `COMPUTED` included; sorted."""
        parts = (*self.terms, *self.corrections, *self.measures, self.aggregation)
        names = {name for part in parts for name in part.columns}
        rules = self.metrics.values()
        names |= {STALENESS} if any(rule.by_staleness for rule in rules) else set()
        names |= {FIRST} if any(rule.of_sequences for rule in rules) else set()
        return tuple(sorted(names))

    def __call__(self, tokens: TokenBatch) -> ObjectiveSums:
        first, *others = [term(tokens) for term in self.terms]
        loss_N, values = first.loss_N, dict(first.metrics)
        if self.corrections:
            weight_N, found = self._weigh(tokens)
            loss_N = loss_N * weight_N
            values |= found
        for term in others:
            loss_N = loss_N + term.loss_N
            values |= term.metrics
        for measure in self.measures:
            values |= measure(tokens)
        loss, denominator = self.aggregation(loss_N, tokens)
        staleness_N, first_N = (tokens.columns.get(name) for name in (STALENESS, FIRST))
        reduced = reduce_tokens(values, self.metrics, tokens.logprobs_N, staleness_N, self.num_ages, first_N)
        return ObjectiveSums(loss, denominator, reduced)

    def _weigh(self, tokens: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The product of all corrections [N], and the metrics of each and of the product."""
        weight_N = torch.ones_like(tokens.logprobs_N, requires_grad=False)
        values: dict[str, Tensor] = {}
        with torch.no_grad():
            for correction in self.corrections:
                one = correction(tokens)
                weight_N = weight_N * one.weight_N
                values |= one.metrics
            return weight_N, values | measure_weights(weight_N, tokens)


def build_objective(
    spec: ObjectiveSpec, *, num_ages: int = 1, top_p: float = 1.0, is_first_pass: bool = True
) -> Objective:
    """The objective for one pass over a batch.

    Args:
        spec: Names and parameters of its parts.
        num_ages: 1 + the largest staleness of a token.
        top_p: Of the distribution that tokens were drawn from; a parameter for parts that take it.
        is_first_pass: Later ones leave out measures that are of the policy that decoded.

    Raises:
        ConfigError: a part is not registered, or lacks a parameter; or a loss of sequences is to be summed over tokens.
    """
    parameters = {**spec.parameters, "top_p": top_p}
    measures = MEASURES.build_all(spec.measures, parameters)
    terms = TERMS.build_all(spec.terms, parameters)
    aggregation = AGGREGATIONS.build(spec.aggregation, parameters)
    of_sequences = [name for name, term in zip(spec.terms, terms, strict=True) if getattr(term, "of_sequences", False)]
    if of_sequences and not getattr(aggregation, "averages_sequences", False):
        raise ConfigError(
            f"the loss {of_sequences[0]!r} is of whole sequences, and the aggregation {spec.aggregation!r} would weigh "
            'them by their length. Remedy: set algorithm.aggregation = "sequence_mean"'
        )
    return Objective(
        terms=terms,
        aggregation=aggregation,
        corrections=CORRECTIONS.build_all(spec.corrections, parameters),
        measures=tuple(measure for measure in measures if is_first_pass or not measure.first_pass_only),
        num_ages=num_ages,
    )
