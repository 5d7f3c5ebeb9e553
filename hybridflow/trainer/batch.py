"""From rows of a batch to the micro-batches of one data parallel rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from hybridflow.types import Ragged, TokenColumns, TrainBatch, TrainSequence
from hybridflow.types.tokens import COLUMNS, select
from megatron_ext.packing.micro_batch import MicroBatch, PackInput, pack_sequences


def pack_rank(
    batch: TrainBatch, dp_rank: int, mini_batch: int = 0, loss_dtype: torch.dtype = torch.float32
) -> list[MicroBatch]:
    """Packed micro-batches of a rank, in plan order. Loss inputs are one value per counted response token:

    `advantages`, `staleness` and every column that the rows have beside their tokens (RL); otherwise (SFT) `share`,
    1 / the row's number of counted tokens, and `first`, 1 at the first of them and 0 at the others. Columns of several
    integers per token are ragged inputs. A loss knows rows by their place in the batch, groups by their order in it.
    """
    columns = _columns_of(batch)
    groups = _number_groups(batch)
    return [
        pack_sequences(
            [
                dataclasses.replace(_pack_input(batch.sequences[row], columns), row_id=row, group_id=groups[row])
                for row in rows
            ]
            or [_placeholder(columns)],
            loss_dtype=loss_dtype,
        )
        for rows in batch.plan[mini_batch][dp_rank]
    ]


def _number_groups(batch: TrainBatch) -> list[int]:
    """By row, the number of its group in the batch, whichever ranks its rows are on."""
    numbers: dict[str, int] = {}
    names = [sequence.group_id or f"/{row}" for row, sequence in enumerate(batch.sequences)]
    return [numbers.setdefault(name, len(numbers)) for name in names]


def _columns_of(batch: TrainBatch) -> dict[str, type]:
    """Kind by name of what any row has beside its tokens."""
    found = {name for sequence in batch.sequences for name in sequence.response.present} - {"ids"}
    return {name: kind for name, kind in COLUMNS.items() if name in found}


def _pack_input(sequence: TrainSequence, columns: Mapping[str, type]) -> PackInput:
    counted = [place for place, mask in enumerate(sequence.loss_mask) if mask]
    inputs: dict[str, list[float]] = {}
    ragged: dict[str, tuple[list[int], list[int]]] = {}
    for name in columns:
        values = getattr(sequence.response, name)
        chosen = select(values, counted) if len(values) else values
        if not isinstance(chosen, Ragged):
            inputs[name] = [float(value) for value in chosen]
        elif len(values):
            ragged[name] = chosen.lengths, chosen.values
    if columns:
        inputs["advantages"] = [sequence.advantage] * len(counted)
        inputs["staleness"] = [float(sequence.staleness[i]) if sequence.staleness else 0.0 for i in counted]
    else:
        inputs["share"] = [1 / len(counted)] * len(counted) if counted else []
        inputs["first"] = [1.0, *[0.0] * len(counted)][: len(counted)]
    return PackInput(
        token_ids=sequence.prompt_token_ids + sequence.response_token_ids,
        predict_from=len(sequence.prompt_token_ids),
        predict_mask=sequence.loss_mask,
        loss_inputs=inputs,
        ragged_inputs=ragged,
    )


def _placeholder(columns: Mapping[str, type]) -> PackInput:
    """A row that predicts nothing, for a rank without rows: it takes part in collectives and adds nothing."""
    nothing = TrainSequence(sequence_id="", prompt_token_ids=[0], response=TokenColumns(ids=[0]), loss_mask=[0])
    return _pack_input(nothing, columns)
