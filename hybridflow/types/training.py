"""Records of training: batches, and reports of updates."""

from __future__ import annotations

import math

import msgspec

from hybridflow.types.tokens import TokenColumns


class TrainSequence(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a training batch: a prompt and a response of T tokens, with what the loss needs at these.

    SFT rows have neither advantage nor columns beside the tokens.
    """

    sequence_id: str
    prompt_token_ids: list[int]
    response: TokenColumns
    loss_mask: list[int]
    """[T], 1 where the token counts in the loss."""
    advantage: float = 0.0
    """Advantage of every token of this response."""
    staleness: list[int] = []
    """[T] policy versions between the one that decoded a token and the present one; empty: all 0."""

    @property
    def response_token_ids(self) -> list[int]:
        return self.response.ids

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.response)


class TrainBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one step and where each is computed.

    `plan[mini_batch][dp_rank][micro_batch]` lists row numbers. A mini-batch is what one optimizer step is made of; a
    micro-batch may be empty where a rank has no row.
    """

    sequences: list[TrainSequence]
    plan: list[list[list[list[int]]]]

    @property
    def num_ages(self) -> int:
        """1 + the largest staleness of a token."""
        return 1 + max((max(sequence.staleness, default=0) for sequence in self.sequences), default=0)


class Mismatch(msgspec.Struct, frozen=True, kw_only=True):
    """How far `old_logprobs` are from `rollout_logprobs`, over the tokens of one staleness in one mini-batch.

    At staleness 0 both are of the same weights: what is left is the difference of engine and trainer. Of older tokens
    it holds what the policy has learnt since.
    """

    staleness: int
    num_tokens: int
    gap: float
    """Mean |old - rollout|."""
    gap_max: float
    kl: float
    """Mean estimate of KL(rollout || old), see `algorithms.mismatch`."""


class UpdateReport(msgspec.Struct, frozen=True, kw_only=True):
    """The report of one optimizer step; equal on all ranks. Means are per token of its mini-batch."""

    loss: float
    grad_norm: float
    num_tokens: int
    """Tokens that count in the loss."""
    num_skipped: int
    """1 where the step was left out because the gradient or the loss was not finite."""
    epoch: int = 0
    """Pass over the batch, from 0."""
    mini_batch: int = 0
    entropy: float = math.nan
    """Entropy of the probabilities that tokens are drawn from (with top-p, those that it leaves in). NaN after the
    first pass: it is reported of the policy that decoded."""
    clip_fraction_low: float = math.nan
    clip_fraction_high: float = math.nan
    policy_kl: float = math.nan
    """Mean estimate of KL(old || new), new being the policy just before this optimizer step: 0 in the first one."""
    ratio_mean: float = math.nan
    """Mean of new / old probability."""
    ratio_max: float = math.nan
    mismatch: list[Mismatch] = []
    """By staleness, where tokens are of it; empty after the first pass."""


class WorkerMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The device of one train worker, and what it holds there."""

    worker: str
    device: str
    """Equal for workers that share one; on a CPU the machine."""
    free_bytes: int
    """Free memory of the device, for whoever asks first."""
    on_device: dict[str, int]
    """Bytes by part: weights, gradients, optimizer."""
    on_host: dict[str, int]
    """Parts that have left the device, with the bytes that they will need there."""
