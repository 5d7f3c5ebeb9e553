"""Checks of aggregations: a sum and a denominator of each micro-batch, which add up over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from hybridflow.algorithms.invariances.of_tokens import NUM_RANKS, Packing
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

LOSS = "loss"
"""Column with a made-up loss of each token."""


def check_sums(aggregation: Any) -> Iterator[Outcome]:
    """Outcomes of the whole suite, in order."""
    rows = make_rows([*aggregation.columns, LOSS])
    plain = _aggregate(aggregation, [[whole(row) for row in rows]])

    def against(packing: Packing, what: str) -> str:
        return compare(plain, _aggregate(aggregation, packing), what, "sums and gradients")

    def over_ranks() -> str:
        packings = [[cut(row, NUM_RANKS, rank) for row in rows] for rank in range(NUM_RANKS)]
        programs = [partial(_aggregate_as_rank, aggregation, pieces) for pieces in packings]
        found: dict[str, float] = {}
        for of_rank in run_as_ranks(programs):
            _add(found, of_rank)
        return compare(plain, found, "rows cut over two ranks", "sums and gradients")

    needed: dict[str, Check] = {
        "ordinary values": lambda: _check_ordinary(plain),
        "no tokens": lambda: _check_empty(aggregation, rows),
    }
    promised: dict[str, Check] = {
        "repeatable": lambda: against([[whole(row) for row in rows]], "called twice"),
        "order of rows": lambda: against([[whole(row) for row in reversed(rows)]], "rows in reverse"),
        "packing": lambda: against([[whole(row) for row in rows[i::2]] for i in (0, 1)], "two micro-batches"),
        "micro-batch size": lambda: against([[whole(row)] for row in rows], "one row per micro-batch"),
        "data parallel": lambda: against(
            [[whole(rows[5])], [whole(row) for row in rows[:5]], [nothing_of(rows[0])]], "rows on other ranks"
        ),
        "context parallel": over_ranks,
    }
    yield from run_checks(needed, promised)


def _aggregate(aggregation: Any, packing: Packing) -> dict[str, float]:
    """Sum, denominator and gradient by token, over all micro-batches."""
    found: dict[str, float] = {}
    for pieces in packing:
        _add(found, _aggregate_as_rank(aggregation, pieces, None))
    return found


def _aggregate_as_rank(aggregation: Any, pieces: Sequence[Piece], meeting: Meeting | None) -> dict[str, float]:
    tokens = build_micro_batch(pieces, torch.float64, meeting)
    loss_N = tokens.columns[LOSS].detach().clone().requires_grad_()
    total, denominator = aggregation(loss_N, tokens)
    (gradient_N,) = torch.autograd.grad(total, [loss_N])
    places = [f"gradient of {place}" for place in places_of(pieces)]
    sums = {"the sum": float(total.detach()), "the denominator": float(denominator)}
    return sums | dict(zip(places, gradient_N.tolist(), strict=True))


def _add(total: dict[str, float], more: dict[str, float]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0.0) + value


def _check_ordinary(plain: dict[str, float]) -> str:
    total, denominator = plain["the sum"], plain["the denominator"]
    if not abs(total) < float("inf") or not denominator > 0 or denominator != int(denominator):
        raise BrokenError(f"sum {total}, denominator {denominator}: a finite number and a whole one above 0 must be")
    return f"sum {total:.6g}, denominator {denominator:.0f}"


def _check_empty(aggregation: Any, rows: list[Row]) -> str:
    found = _aggregate(aggregation, [[nothing_of(rows[0])]])
    if found["the sum"] or found["the denominator"]:
        raise BrokenError(f"a micro-batch without tokens gives {found}, where 0 and 0 must be")
    return "a rank without rows adds nothing"
