"""Makes the micro-batches of one data parallel rank from the rows of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hybridflow.algorithms.objective import COMPUTED
from hybridflow.errors import ProtocolError
from hybridflow.types import Packed, Ragged, TokenColumns, TrainBatch, TrainSequence
from hybridflow.types.tokens import COLUMNS, concatenate_packed, select
from megatron_ext.packing.micro_batch import MicroBatch, PackInput, pack_sequences
from megatron_ext.packing.routed_experts import RoutedExperts

Column = Callable[[TrainSequence, list[int]], list[float]]
OF_ROW: dict[str, Column] = {
    "advantages": lambda row, counted: [row.advantage] * len(counted),
    "staleness": lambda row, counted: [float(row.staleness[i]) if row.staleness else 0.0 for i in counted],
    "share": lambda row, counted: [1 / len(counted)] * len(counted),
    "first": lambda row, counted: [1.0, *[0.0] * (len(counted) - 1)],
}
"""Columns that follow from the row and its counted tokens: `share` is 1 / their number, `first` is 1 at the first of
them and 0 at the others. All other columns are those of `TokenColumns`, or what was measured of the row."""


def pack_rank(
    batch: TrainBatch,
    dp_rank: int,
    columns: Sequence[str] = (),
    mini_batch: int = 0,
    loss_dtype: torch.dtype = torch.float32,
) -> list[MicroBatch]:
    """Packed micro-batches of a rank, in plan order. Loss inputs are `columns`, one value per counted response token.

    Columns of several integers per token are ragged inputs, which the model reads, wherever a row has them. Raises
    ProtocolError for a column that a row does not have. A loss knows rows by their place in the batch, groups by their
    order in it.
    """
    groups = _number_groups(batch)
    return [
        pack_sequences(
            [_pack_input(batch.sequences[row], columns, row, groups[row]) for row in rows] or [_placeholder(columns)],
            loss_dtype=loss_dtype,
        )
        for rows in batch.plan[mini_batch][dp_rank]
    ]


def _number_groups(batch: TrainBatch) -> list[int]:
    """By row, the number of its group in the batch, whichever ranks its rows are on."""
    numbers: dict[str, int] = {}
    names = [sequence.group_id or f"/{row}" for row, sequence in enumerate(batch.sequences)]
    return [numbers.setdefault(name, len(numbers)) for name in names]


def _pack_input(sequence: TrainSequence, columns: Sequence[str], row_id: int = 0, group_id: int = 0) -> PackInput:
    counted = [place for place, mask in enumerate(sequence.loss_mask) if mask]
    ragged: dict[str, tuple[list[int], list[int]]] = {}
    for name, values in sequence.response.present.items():
        if isinstance(values, Ragged):
            chosen = select(values, counted)
            ragged[name] = chosen.lengths, chosen.values
    return PackInput(
        token_ids=sequence.prompt_token_ids + sequence.response_token_ids,
        predict_from=len(sequence.prompt_token_ids),
        predict_mask=sequence.loss_mask,
        loss_inputs={name: _column(sequence, name, counted) if counted else [] for name in columns},
        ragged_inputs=ragged,
        routed_experts=_routed_experts(sequence),
        row_id=row_id,
        group_id=group_id,
    )


def _routed_experts(sequence: TrainSequence) -> RoutedExperts | None:
    """Experts of all tokens but the last; None where nobody told. ProtocolError where prompts miss some."""
    prompt, response = sequence.prompt_experts, sequence.response.experts
    if not len(response):
        return None
    if len(prompt) != len(sequence.prompt_token_ids) - 1:
        raise ProtocolError(
            f"row {sequence.sequence_id} has a prompt of {len(sequence.prompt_token_ids)} tokens and the experts of "
            f"{len(prompt)} of them; all but the last must have some"
        )
    whole = concatenate_packed([prompt, response])
    return RoutedExperts.of_bytes(whole.data, whole.shape, whole.bytes_each, sequence.num_tokens)


def _column(sequence: TrainSequence, name: str, counted: list[int]) -> list[float]:
    if name in OF_ROW:
        return OF_ROW[name](sequence, counted)
    if name in COMPUTED:
        if name not in sequence.measured:
            raise ProtocolError(
                f"the objective needs {name!r} of each token, and row {sequence.sequence_id} was not measured. Remedy: "
                "for a reference set algorithm.kl.place, coefficient and reference"
            )
        return [sequence.measured[name][place] for place in counted]
    if name not in COLUMNS or COLUMNS[name] in (Ragged, Packed):
        raise ProtocolError(f"the objective needs a column {name!r}, and there is none: see TokenColumns and OF_ROW")
    values = getattr(sequence.response, name)
    if not values:
        raise ProtocolError(f"the objective needs {name!r} of each token, and row {sequence.sequence_id} has none")
    return [float(values[place]) for place in counted]


def _placeholder(columns: Sequence[str]) -> PackInput:
    """A row that predicts nothing, for a rank without rows: it takes part in collectives and adds nothing."""
    nothing = TrainSequence(sequence_id="", prompt_token_ids=[0], response=TokenColumns(ids=[0]), loss_mask=[0])
    return _pack_input(nothing, columns)
