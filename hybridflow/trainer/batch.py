"""From rows of a batch to the micro-batches of one data parallel rank."""

from __future__ import annotations

import torch

from hybridflow.types import TrainBatch, TrainSequence
from megatron_ext.packing.micro_batch import MicroBatch, PackInput, pack_sequences


def pack_rank(
    batch: TrainBatch, dp_rank: int, mini_batch: int = 0, loss_dtype: torch.dtype = torch.float32
) -> list[MicroBatch]:
    """Packed micro-batches of a rank, in plan order. Loss inputs are one value per counted response token:

    `advantages`, `rollout_logprobs` and `staleness` where the rows have them (RL): what a correction for the mismatch
    of engine and policy needs beside the trainer's own logprobs; otherwise (SFT) `share`, 1 / the row's number of
    counted tokens, and `first`, 1 at the first of them and 0 at the others.
    """
    return [
        pack_sequences(
            [_pack_input(batch.sequences[row]) for row in rows] or [_placeholder(batch.sequences)],
            loss_dtype=loss_dtype,
        )
        for rows in batch.plan[mini_batch][dp_rank]
    ]


def _pack_input(sequence: TrainSequence) -> PackInput:
    counted = [i for i, mask in enumerate(sequence.loss_mask) if mask]
    if sequence.rollout_logprobs:
        inputs = {
            "advantages": [sequence.advantage] * len(counted),
            "rollout_logprobs": [sequence.rollout_logprobs[i] for i in counted],
            "staleness": [float(sequence.staleness[i]) if sequence.staleness else 0.0 for i in counted],
        }
    else:
        inputs = {"share": [1 / len(counted)] * len(counted) if counted else [], "first": [1.0, *[0.0] * len(counted)]}
        inputs["first"] = inputs["first"][: len(counted)]
    return PackInput(
        token_ids=sequence.prompt_token_ids + sequence.response_token_ids,
        predict_from=len(sequence.prompt_token_ids),
        predict_mask=sequence.loss_mask,
        loss_inputs=inputs,
        support=_support_of(sequence) if sequence.support_lengths else None,
    )


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


def _placeholder(sequences: list[TrainSequence]) -> PackInput:
    """A row that predicts nothing, for a rank without rows: it takes part in collectives and adds nothing."""
    names = ("advantages", "rollout_logprobs", "staleness") if sequences[0].rollout_logprobs else ("share", "first")
    inputs: dict[str, list[float]] = {name: [] for name in names}
    return PackInput(token_ids=[0, 0], predict_from=1, predict_mask=[0], loss_inputs=inputs)
