"""Made-up rows of tokens, and micro-batches of them in any packing.

Shape legend: T tokens of a row, N counted tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridflow.algorithms.invariances.rows import MadeRows, Meeting
from hybridflow.algorithms.objective import ENTROPY, OLD_LOGPROBS, TokenBatch
from hybridflow.algorithms.reductions import STALENESS

LENGTHS = (5, 1, 3, 8, 2, 4)
"""Counted tokens of each row; two rows are a group."""
EXTREMES = (30.0, -30.0, 100.0, -100.0, 300.0, -300.0)
"""Log ratios of rows that are not ordinary: exp(89) is beyond float32."""


ROLLOUT_LOGPROBS = "rollout_logprobs"


@dataclass(frozen=True)
class Row:
    """One row with its columns, [T] each."""

    number: int
    logprobs_T: Tensor
    columns: dict[str, Tensor]


@dataclass(frozen=True)
class Piece:
    """Some positions of a row: all of them, or those of one context parallel rank."""

    row: Row
    positions: Tensor


def make_rows(columns: Sequence[str], dtype: torch.dtype = torch.float64, *, extreme: bool = False) -> list[Row]:
    """Six rows, the same at each call; `extreme`: with log ratios that a policy gone wrong has."""
    chance = torch.Generator().manual_seed(5)

    def normal(size: int) -> Tensor:
        return torch.randn(size, generator=chance, dtype=torch.float64)

    rows = []
    for number, length in enumerate(LENGTHS):
        logprobs_T = -normal(length).exp()
        old_T = logprobs_T + 0.3 * normal(length)
        if extreme:
            logprobs_T = torch.full((length,), -0.01, dtype=torch.float64)
            old_T = logprobs_T - abs(EXTREMES[number])
            if EXTREMES[number] < 0:
                logprobs_T, old_T = old_T, logprobs_T
        advantage = normal(1)
        values: dict[str, Tensor] = {}
        for name in columns:
            made = _make_column(name, logprobs_T, old_T, normal(length))
            if extreme and name.endswith("logprobs") and name != OLD_LOGPROBS:
                made = logprobs_T if name == ROLLOUT_LOGPROBS else old_T
            values[name] = (advantage * (-1) ** number).expand(length) if name == "advantages" else made
        rows.append(Row(number, logprobs_T.to(dtype), {name: column.to(dtype) for name, column in values.items()}))
    return rows


def _make_column(name: str, logprobs_T: Tensor, old_T: Tensor, noise_T: Tensor) -> Tensor:
    """A column by its name: log-probabilities are near those of the policies, all else is from 0 to 1."""
    length = len(noise_T)
    if name == OLD_LOGPROBS:
        return old_T
    if name.endswith("logprobs"):  # the engine's, a reference's
        return old_T + 0.2 * noise_T
    if name == STALENESS:
        return (noise_T > 0.5).double()
    if name == "share":
        return torch.full((length,), 1 / length, dtype=torch.float64)
    if name == "first":
        return torch.tensor([1.0, *[0.0] * (length - 1)], dtype=torch.float64)
    return noise_T.sigmoid()


def places_of(pieces: Sequence[Piece]) -> list[str]:
    """A name for each position of a micro-batch, in its order."""
    return [f"token {at} of row {piece.row.number}" for piece in pieces for at in piece.positions.tolist()]


def whole(row: Row) -> Piece:
    return Piece(row, torch.arange(len(row.logprobs_T)))


def cut(row: Row, num_ranks: int, rank: int) -> Piece:
    """The positions of one context parallel rank: of short rows, none may be left for it."""
    return Piece(row, torch.arange(rank, len(row.logprobs_T), num_ranks))


def build_micro_batch(
    pieces: Sequence[Piece], dtype: torch.dtype, meeting: Meeting | None = None, *, with_graph: bool = True
) -> TokenBatch:
    """A micro-batch. Log-probabilities are leaves that want a gradient; the entropy too, for a loss (`with_graph`)."""
    counts = torch.tensor([len(piece.positions) for piece in pieces], dtype=torch.int64)
    names = list(pieces[0].row.columns)
    columns = {
        name: torch.cat([piece.row.columns[name][piece.positions] for piece in pieces]).to(dtype) for name in names
    }
    if with_graph and ENTROPY in columns:
        columns[ENTROPY].requires_grad_()
    numbers = torch.tensor([piece.row.number for piece in pieces], dtype=torch.int64)
    return TokenBatch(
        torch.cat([piece.row.logprobs_T[piece.positions] for piece in pieces]).to(dtype).requires_grad_(),
        columns,
        MadeRows(
            torch.arange(len(pieces)).repeat_interleave(counts),
            numbers,
            numbers // 2,
            torch.tensor([len(piece.row.logprobs_T) for piece in pieces], dtype=torch.int64),
            meeting,
        ),
    )


def nothing_of(row: Row) -> Piece:
    """A row of which no token counts, as a rank without rows has."""
    empty = Row(row.number, row.logprobs_T[:0], {name: column[:0] for name, column in row.columns.items()})
    return whole(empty)
