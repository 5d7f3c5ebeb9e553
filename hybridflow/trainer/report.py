"""What an optimizer step on a policy objective did, from its sums."""

from __future__ import annotations

import math

from hybridflow.types import Mismatch, UpdateReport
from megatron_ext.policy import TrainStepResult


def build_update_report(result: TrainStepResult, *, epoch: int, mini_batch: int, num_ages: int) -> UpdateReport:
    """Means per token of the metric sums of `objectives.PolicyObjective`."""
    sums, num_tokens = result.sums, max(result.num_tokens, 1)
    return UpdateReport(
        loss=result.loss,
        grad_norm=result.grad_norm,
        num_tokens=result.num_tokens,
        num_skipped=int(result.skipped),
        epoch=epoch,
        mini_batch=mini_batch,
        entropy=math.nan if epoch else sums["entropy"] / num_tokens,
        clip_fraction_low=sums["clipped_low"] / num_tokens,
        clip_fraction_high=sums["clipped_high"] / num_tokens,
        policy_kl=sums["policy_kl"] / num_tokens,
        ratio_mean=sums["ratio"] / num_tokens,
        ratio_max=result.maxima["ratio"],
        mismatch=[] if epoch else _build_mismatch(result, num_ages),
    )


def _build_mismatch(result: TrainStepResult, num_ages: int) -> list[Mismatch]:
    sums = result.sums
    return [
        Mismatch(
            staleness=age,
            num_tokens=int(count),
            gap=sums[f"gap/{age}"] / count,
            gap_max=result.maxima[f"gap/{age}"],
            kl=sums[f"kl/{age}"] / count,
        )
        for age in range(num_ages)
        if (count := sums[f"tokens/{age}"])
    ]
