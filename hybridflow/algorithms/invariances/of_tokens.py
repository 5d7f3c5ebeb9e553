"""Checks of losses, metrics and aggregations: parts that see the tokens of a micro-batch.

Shape legend: N counted tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hybridflow.algorithms.invariances.outcome import BrokenError, Check, Outcome, compare, run_checks
from hybridflow.algorithms.invariances.rows import Meeting, run_as_ranks
from hybridflow.algorithms.invariances.tokens import (
    Piece,
    Row,
    build_micro_batch,
    cut,
    make_rows,
    nothing_of,
    places_of,
    whole,
)
from hybridflow.algorithms.objective import ENTROPY, TokenBatch

Packing = Sequence[Sequence[Piece]]
"""Rows, or parts of them, of each micro-batch."""
NUM_RANKS = 2


@dataclass(frozen=True)
class Values:
    """Results of a part by place, whatever the packing."""

    numbers: dict[str, float]
    """`loss of token 2 of row 1`, or a sum."""
    gradient: dict[str, float]
    """Gradient of the sum of all losses, by token."""


class TokenPart:
    """A loss, metric or aggregation, as the suite calls it.

    Args:
        call: From a micro-batch to named values [N]; those of a loss have a graph.
        columns: Columns that it reads.
        is_loss: Whether gradients are to come from it; otherwise none may.
    """

    def __init__(
        self, call: Callable[[TokenBatch], Mapping[str, Tensor]], columns: Sequence[str], *, is_loss: bool
    ) -> None:
        self.call = call
        self.columns = tuple(columns)
        self.is_loss = is_loss

    def rows(self, dtype: torch.dtype = torch.float64, *, extreme: bool = False) -> list[Row]:
        return make_rows(self.columns, dtype, extreme=extreme)

    def evaluate(self, packing: Packing, dtype: torch.dtype = torch.float64) -> Values:
        """Results over micro-batches one after the other, as one data parallel rank has them, or all of them."""
        found = Values({}, {})
        for pieces in packing:
            tokens = self.build(pieces, dtype)
            values = self.call(tokens)
            self._backward(list(values.values()))
            self._collect(found, pieces, tokens, values)
        return found

    def evaluate_as_ranks(self, packings: Sequence[Sequence[Piece]]) -> Values:
        """Results over one micro-batch whose rows context parallel ranks share."""

        def program(pieces: Sequence[Piece], meeting: Meeting) -> tuple[TokenBatch, Mapping[str, Tensor]]:
            tokens = self.build(pieces, torch.float64, meeting)
            return tokens, self.call(tokens)

        results = run_as_ranks([partial(program, pieces) for pieces in packings])
        self._backward([one for _, values in results for one in values.values()])
        found = Values({}, {})
        for pieces, (tokens, values) in zip(packings, results, strict=True):
            self._collect(found, pieces, tokens, values)
        return found

    def build(self, pieces: Sequence[Piece], dtype: torch.dtype, meeting: Meeting | None = None) -> TokenBatch:
        return build_micro_batch(pieces, dtype, meeting, with_graph=self.is_loss)

    def _backward(self, values: Sequence[Tensor]) -> None:
        graphs = [value for value in values if value.requires_grad]
        if graphs:
            torch.stack([graph.sum() for graph in graphs]).sum().backward()

    def _collect(
        self, found: Values, pieces: Sequence[Piece], tokens: TokenBatch, values: Mapping[str, Tensor]
    ) -> None:
        places = places_of(pieces)
        for name, values_N in values.items():
            found.numbers.update((f"{name} of {at}", v) for at, v in zip(places, values_N.tolist(), strict=True))
        for leaf in (tokens.logprobs_N, tokens.columns.get(ENTROPY)):
            if leaf is not None and leaf.grad is not None:
                for at, value in zip(places, leaf.grad.tolist(), strict=True):
                    key = f"gradient of {at}"
                    found.gradient[key] = found.gradient.get(key, 0.0) + value


def check_tokens(part: TokenPart) -> Iterator[Outcome]:
    """Outcomes of the whole suite, in order."""
    rows = part.rows()
    plain: Packing = [[whole(row) for row in rows]]

    def against(packing: Packing, what: str) -> str:
        expected, found = part.evaluate(plain), part.evaluate(packing)
        told = compare(expected.numbers, found.numbers, what, "values")
        compare(expected.gradient, found.gradient, what, "gradients")
        return told

    def over_ranks() -> str:
        expected = part.evaluate(plain)
        found = part.evaluate_as_ranks([[cut(row, NUM_RANKS, rank) for row in rows] for rank in range(NUM_RANKS)])
        what = "rows cut over two ranks"
        told = compare(expected.numbers, found.numbers, what, "values")
        compare(expected.gradient, found.gradient, what, "gradients")
        return told

    needed: dict[str, Check] = {
        "ordinary values": lambda: _check_ordinary(part, rows),
        "no tokens": lambda: _check_empty(part, rows),
        "inputs untouched": lambda: _check_untouched(part, rows),
    }
    promised: dict[str, Check] = {
        "float64": lambda: _check_float64(part),
        "repeatable": lambda: against(plain, "called twice"),
        "order of rows": lambda: against([[whole(row) for row in reversed(rows)]], "rows in reverse"),
        "packing": lambda: against([[whole(row) for row in rows[i::2]] for i in (0, 1)], "two micro-batches"),
        "micro-batch size": lambda: against([[whole(row)] for row in rows], "one row per micro-batch"),
        "data parallel": lambda: against(
            [[whole(rows[5])], [whole(row) for row in rows[:5]], [nothing_of(rows[0])]], "rows on other ranks"
        ),
        "context parallel": over_ranks,
        "extreme ratios": lambda: _check_extreme(part),
        "gradient": lambda: _check_gradient(part, rows),
    }
    yield from run_checks(needed, promised)


def _check_ordinary(part: TokenPart, rows: list[Row]) -> str:
    found = part.evaluate([[whole(row) for row in rows]], torch.float32)
    _refuse_infinite(found)
    if part.is_loss and not any(found.gradient.values()):
        raise BrokenError(
            "no gradient comes from it: its values do not depend on the log-probabilities of the policy in update. "
            "Remedy: compute them from logprobs, without detach() or no_grad()"
        )
    numbers = list(found.numbers.values())
    return f"{len(numbers)} values from {min(numbers):.3g} to {max(numbers):.3g}"


def _check_empty(part: TokenPart, rows: list[Row]) -> str:
    part.evaluate([[nothing_of(rows[0])]], torch.float32)
    return "a rank without rows"


def _check_float64(part: TokenPart) -> str:
    """A policy may compute in float64; and the finer numbers say whether the others are right."""
    double = part.evaluate([[whole(row) for row in part.rows()]])
    single = part.evaluate([[whole(row) for row in part.rows()]], torch.float32)
    worst = max((abs(v - single.numbers[at]) / (1 + abs(v)), at) for at, v in double.numbers.items())
    if not worst[0] < 1e-3:
        raise BrokenError(f"{worst[1]} is {single.numbers[worst[1]]:.9g} in float32, {double.numbers[worst[1]]:.9g}")
    return f"float32 is within {worst[0]:.1e}"


def _check_untouched(part: TokenPart, rows: list[Row]) -> str:
    tokens = part.build([whole(row) for row in rows], torch.float32)
    inputs = {"logprobs": tokens.logprobs_N, **tokens.columns}
    before = {name: column.detach().clone() for name, column in inputs.items()}
    part.call(tokens)
    changed = [name for name, column in inputs.items() if not torch.equal(column.detach(), before[name])]
    if changed:
        raise BrokenError(f"it changes {', '.join(changed)} in place; other parts read the same tensor")
    return ", ".join(inputs)


def _check_extreme(part: TokenPart) -> str:
    rows = part.rows(extreme=True)
    found = part.evaluate([[whole(row) for row in rows]], torch.float32)
    _refuse_infinite(found, "log ratios of 30 to 300: ")
    return "log ratios of +-30, +-100, +-300 give finite values" + (" and gradients" if part.is_loss else "")


def _check_gradient(part: TokenPart, rows: list[Row]) -> str:
    """From the losses of one row to its own tokens alone; from metrics none at all."""
    pieces = [whole(row) for row in rows]
    tokens = part.build(pieces, torch.float64)
    values = part.call(tokens)
    if not part.is_loss:
        names = [name for name, value in values.items() if value.requires_grad]
        if names:
            raise BrokenError(f"{', '.join(names)} has a graph, which a metric must not have")
        return "none"
    row_N = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(row.logprobs_T) for row in rows]))
    loss_N = next(iter(values.values()))
    for number in range(len(rows)):
        leaves = [leaf for leaf in (tokens.logprobs_N, tokens.columns.get(ENTROPY)) if leaf is not None]
        found = torch.autograd.grad(loss_N[row_N == number].sum(), leaves, retain_graph=True, allow_unused=True)
        for gradient in found:
            if gradient is not None and gradient[row_N != number].abs().max() > 0:
                other = int(row_N[(gradient.abs() > 0) & (row_N != number)][0])
                raise BrokenError(f"the losses of row {number} have a gradient to tokens of row {other}")
    return "from each row to its own tokens"


def _refuse_infinite(found: Values, what: str = "") -> None:
    for at, value in {**found.numbers, **found.gradient}.items():
        if not abs(value) < float("inf"):
            raise BrokenError(f"{what}{at} is {value}")


def as_loss(term: Any) -> TokenPart:
    """A term of the loss, with its metrics."""

    def call(tokens: TokenBatch) -> dict[str, Tensor]:
        value = term(tokens)
        return {"loss": value.loss_N, **{name: one.detach() for name, one in value.metrics.items()}}

    return TokenPart(call, term.columns, is_loss=True)


def as_weights(correction: Any) -> TokenPart:
    """A correction, with its metrics."""

    def call(tokens: TokenBatch) -> dict[str, Tensor]:
        found = correction(tokens)
        return {"weight": found.weight_N, **found.metrics}

    return TokenPart(call, correction.columns, is_loss=False)


def as_metric(measure: Any) -> TokenPart:
    return TokenPart(lambda tokens: measure(tokens), measure.columns, is_loss=False)
