"""What the trainer gets, and what it reports."""

from __future__ import annotations

import math

import msgspec


class TrainSequence(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a training batch: a prompt and a response, with what the loss needs at response tokens.

    T = len(response_token_ids). SFT rows have neither advantage nor logprobs.
    """

    sequence_id: str
    prompt_token_ids: list[int]
    response_token_ids: list[int]
    loss_mask: list[int]
    """[T], 1 where the token counts in the loss."""
    advantage: float = 0.0
    """Advantage of every token of this response."""
    rollout_logprobs: list[float] = []
    """[T], or empty."""
    staleness: list[int] = []
    """[T] policy versions between the one that decoded a token and the present one; empty: all 0."""
    support_lengths: list[int] = []
    """[T], or empty where any token could have been drawn; see `Completion`."""
    support_ids: list[int] = []

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.response_token_ids)


class TrainBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one optimizer step and where each is computed.

    `plan[dp_rank][micro_batch]` lists row numbers; a micro-batch may be empty where a rank has no row.
    """

    sequences: list[TrainSequence]
    plan: list[list[list[int]]]


class UpdateReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the optimizer steps on one batch did; equal on all ranks. Means are per token of the whole batch."""

    loss: float
    grad_norm: float
    num_tokens: int
    """Tokens that count in the loss."""
    num_skipped: int
    """Optimizer steps left out because the gradient or the loss was not finite."""
    entropy: float = math.nan
    clip_fraction_low: float = math.nan
    clip_fraction_high: float = math.nan
    num_fresh_tokens: int = 0
    """Of `num_tokens`, those that the present policy decoded: what the three below are about."""
    logprob_gap: float = math.nan
    """Mean |old_logprobs - rollout_logprobs|."""
    logprob_gap_max: float = math.nan
    """Largest |old_logprobs - rollout_logprobs|."""
    logprob_kl: float = math.nan
    """Mean estimate of KL(engine || trainer), see `algorithms.mismatch`."""


class WorkerMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The device of one train worker, and what it holds there."""

    worker: str
    device: str
    """Equal for workers that share one; on a CPU the machine."""
    free_bytes: int
    """Of the device, for whoever asks first."""
    on_device: dict[str, int]
    """Bytes by part: weights, gradients, optimizer."""
    on_host: dict[str, int]
    """Parts that have left the device, with the bytes that they will need there."""
