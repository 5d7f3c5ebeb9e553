"""From rows of a batch to the micro-batches of one data parallel rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hybridflow.errors import ProtocolError
from hybridflow.types import TrainBatch, TrainSequence
from megatron_ext.packing.micro_batch import MicroBatch, PackInput, pack_sequences

OF_ROW: dict[str, Callable[[TrainSequence, int], list[float]]] = {
    "advantages": lambda row, num_counted: [row.advantage] * num_counted,
    "share": lambda row, num_counted: [1 / num_counted] * num_counted,
    "first": lambda row, num_counted: [1.0, *[0.0] * (num_counted - 1)],
}
"""Columns that follow from the row: `share` is 1 / its number of counted tokens, `first` is 1 at the first of them and
0 at the others. All other columns are of its tokens."""


def pack_rank(
    batch: TrainBatch,
    dp_rank: int,
    columns: Sequence[str] = (),
    mini_batch: int = 0,
    loss_dtype: torch.dtype = torch.float32,
) -> list[MicroBatch]:
    """Packed micro-batches of a rank, in plan order. Loss inputs are `columns`, one value per counted response token.

    Raises ProtocolError for a column that the rows do not have.
    """
    return [
        pack_sequences(
            [_pack_input(batch.sequences[row], columns) for row in rows] or [_placeholder(columns)],
            loss_dtype=loss_dtype,
        )
        for rows in batch.plan[mini_batch][dp_rank]
    ]


def _pack_input(sequence: TrainSequence, columns: Sequence[str]) -> PackInput:
    counted = [i for i, mask in enumerate(sequence.loss_mask) if mask]
    return PackInput(
        token_ids=sequence.prompt_token_ids + sequence.response_token_ids,
        predict_from=len(sequence.prompt_token_ids),
        predict_mask=sequence.loss_mask,
        loss_inputs={name: _column(sequence, name, counted) for name in columns},
        support=_support_of(sequence) if sequence.support_lengths else None,
    )


def _column(sequence: TrainSequence, name: str, counted: list[int]) -> list[float]:
    if not counted:
        return []
    if name in OF_ROW:
        return OF_ROW[name](sequence, len(counted))
    if name == "staleness":
        return [float(sequence.staleness[i]) if sequence.staleness else 0.0 for i in counted]
    values: list[float] = getattr(sequence, name, [])
    if not values:
        raise ProtocolError(f"the objective needs {name!r} of each token, and row {sequence.sequence_id} has none")
    return [values[i] for i in counted]


def _support_of(sequence: TrainSequence) -> tuple[list[int], list[int]]:
    """Of the counted tokens: how many could have been drawn in place of each, and all of these."""
    lengths: list[int] = []
    token_ids: list[int] = []
    start = 0
    for mask, length in zip(sequence.loss_mask, sequence.support_lengths, strict=True):
        if mask:
            lengths.append(length)
            token_ids += sequence.support_ids[start : start + length]
        start += length
    return lengths, token_ids


def _placeholder(columns: Sequence[str]) -> PackInput:
    """A row that predicts nothing, for a rank without rows: it takes part in collectives and adds nothing."""
    return PackInput(token_ids=[0, 0], predict_from=1, predict_mask=[0], loss_inputs={name: [] for name in columns})
