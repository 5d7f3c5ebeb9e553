"""Loss callbacks: what Megatron's schedule calls with the logprobs of one micro-batch.

Each returns SUMS over tokens; megatron_ext divides by the token count of the whole optimizer step, over all
micro-batches and data parallel ranks. Shape legend: N predicted tokens of the micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hybridflow.algorithms.losses import policy_loss
from hybridflow.algorithms.mismatch import mismatch_sums
from megatron_ext.packing import MicroBatch
from megatron_ext.sums import LossSums


def sft_objective(logprobs_N: Tensor, entropy_N: Tensor | None, micro_batch: MicroBatch) -> LossSums:
    """Negative log-likelihood of the demonstration."""
    return LossSums(loss=-logprobs_N.sum(), num_tokens=logprobs_N.numel(), metrics={})


def sequence_mean_objective(logprobs_N: Tensor, entropy_N: Tensor | None, micro_batch: MicroBatch) -> LossSums:
    """Mean over sequences of each sequence's mean negative log-likelihood (QwenLong-L1, arXiv 2505.17667, eq. 11).

    The denominator counts sequences, at their first counted token, so that each is counted once however it is cut.
    Metric sums: `nll` and `tokens`.
    """
    inputs = micro_batch.loss_inputs
    return LossSums(
        loss=-(inputs["share"] * logprobs_N).sum(),
        num_tokens=inputs["first"].sum(),
        metrics={"nll": -logprobs_N.sum(), "tokens": torch.tensor(float(logprobs_N.numel()), device=logprobs_N.device)},
    )


@dataclass(frozen=True)
class PolicyObjective:
    """Clipped GRPO/DAPO surrogate; needs `advantages`, `old_logprobs`, `rollout_logprobs` and `staleness` as
    loss inputs.

    Metric sums: `entropy`, `clipped_low`, `clipped_high` (tokens), and of the tokens that the present policy decoded,
    `fresh_tokens`: `logprob_gap` (|old - rollout|), `logprob_kl` (of the engine's distribution against the trainer's).
    """

    clip_low: float
    clip_high: float

    def __call__(self, logprobs_N: Tensor, entropy_N: Tensor | None, micro_batch: MicroBatch) -> LossSums:
        inputs = micro_batch.loss_inputs
        old_N = inputs["old_logprobs"]
        loss_N, low_N, high_N = policy_loss(
            logprobs_N, old_N, inputs["advantages"], clip_low=self.clip_low, clip_high=self.clip_high
        )
        is_fresh_N = inputs["staleness"] == 0  # of an older token the gap is the policy's, not the engine's
        gap, kl = mismatch_sums(old_N[is_fresh_N], inputs["rollout_logprobs"][is_fresh_N])
        entropy = entropy_N.sum() if entropy_N is not None else torch.zeros((), device=logprobs_N.device)
        return LossSums(
            loss=loss_N.sum(),
            num_tokens=logprobs_N.numel(),
            metrics={
                "entropy": entropy,
                "clipped_low": low_N.sum(),
                "clipped_high": high_N.sum(),
                "logprob_gap": gap,
                "logprob_kl": kl,
                "fresh_tokens": is_fresh_N.sum(),
            },
        )
