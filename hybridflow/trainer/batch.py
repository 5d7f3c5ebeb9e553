"""From rows of a batch to the micro-batches of one data parallel rank."""

from __future__ import annotations

from hybridflow.types import TrainBatch, TrainSequence
from megatron_ext.packing import MicroBatch, PackInput, pack_sequences


def pack_rank(batch: TrainBatch, dp_rank: int) -> list[MicroBatch]:
    """Packed micro-batches of a rank, in plan order. Loss inputs are one value per counted response token:

    `advantages` and `rollout_logprobs` where the rows have them (RL), none otherwise (SFT).
    """
    return [
        pack_sequences([_pack_input(batch.sequences[row]) for row in rows] or [_placeholder(batch.sequences)])
        for rows in batch.plan[dp_rank]
    ]


def _pack_input(sequence: TrainSequence) -> PackInput:
    inputs: dict[str, list[float]] = {}
    if sequence.rollout_logprobs:
        counted = [i for i, mask in enumerate(sequence.loss_mask) if mask]
        inputs["advantages"] = [sequence.advantage] * len(counted)
        inputs["rollout_logprobs"] = [sequence.rollout_logprobs[i] for i in counted]
    return PackInput(
        token_ids=sequence.prompt_token_ids + sequence.response_token_ids,
        predict_from=len(sequence.prompt_token_ids),
        predict_mask=sequence.loss_mask,
        loss_inputs=inputs,
    )


def _placeholder(sequences: list[TrainSequence]) -> PackInput:
    """A row that predicts nothing, for a rank without rows: it takes part in collectives and adds nothing."""
    inputs: dict[str, list[float]] = {}
    if sequences[0].rollout_logprobs:
        inputs = {"advantages": [], "rollout_logprobs": []}
    return PackInput(token_ids=[0, 0], predict_from=1, predict_mask=[0], loss_inputs=inputs)
