"""Loss callbacks: what Megatron's schedule calls with the logprobs of one micro-batch.

Each returns SUMS over tokens; megatron_ext divides by the token count of the whole optimizer step, over all
micro-batches and data parallel ranks. Shape legend: N predicted tokens of the micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hybridflow.algorithms.losses import policy_loss
from hybridflow.algorithms.mismatch import largest_gap, mismatch_sums, ratio_sums
from megatron_ext.packing.micro_batch import MicroBatch
from megatron_ext.packing.sums import LossSums


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
    """Clipped token-level surrogate of DAPO, see `algorithms.losses.policy_loss`, and what a step tells of it.

    Loss inputs: `advantages`, `rollout_logprobs`, `staleness`, and `old_logprobs` unless `is_on_policy`.

    Metric sums: `entropy`, `clipped_low`, `clipped_high` (tokens), `ratio` and `policy_kl` (of old against new
    probabilities); and for each staleness k below `num_ages` `tokens/k`, `gap/k` and `kl/k` of the trainer's old
    against the engine's probabilities. Maxima: `ratio`, `gap/k`.
    """

    clip_low: float
    clip_high: float
    is_on_policy: bool
    """The policy is still the one that decoded, so the old log-probabilities are those of this pass, detached."""
    num_ages: int = 1

    def __call__(self, logprobs_N: Tensor, entropy_N: Tensor | None, micro_batch: MicroBatch) -> LossSums:
        inputs = micro_batch.loss_inputs
        old_N = logprobs_N.detach() if self.is_on_policy else inputs["old_logprobs"]
        loss_N, low_N, high_N = policy_loss(
            logprobs_N, old_N, inputs["advantages"], clip_low=self.clip_low, clip_high=self.clip_high
        )
        zero = torch.zeros((), device=logprobs_N.device)
        ratio = ratio_sums(logprobs_N.detach(), old_N)
        sums = {
            "entropy": zero if entropy_N is None else entropy_N.sum(),
            "clipped_low": low_N.sum(),
            "clipped_high": high_N.sum(),
            "ratio": ratio.ratio,
            "policy_kl": ratio.kl,
        }
        maxima = {"ratio": ratio.ratio_max}
        for age in range(self.num_ages):
            is_of_age_N = inputs["staleness"] == age
            trainer, engine = old_N[is_of_age_N], inputs["rollout_logprobs"][is_of_age_N]
            gap, kl = mismatch_sums(trainer, engine)
            sums |= {f"tokens/{age}": is_of_age_N.sum(), f"gap/{age}": gap, f"kl/{age}": kl}
            maxima[f"gap/{age}"] = largest_gap(trainer, engine)
        return LossSums(loss=loss_N.sum(), num_tokens=logprobs_N.numel(), metrics=sums, maxima=maxima)
