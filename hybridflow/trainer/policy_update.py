"""The optimizer steps of one RL step: mini-batch by mini-batch, with what each of them did."""

from __future__ import annotations

import dataclasses
import itertools
import math

from torch import Tensor

from hybridflow.config.sections import AlgorithmSection
from hybridflow.observability.span import enter
from hybridflow.trainer.batch import pack_rank
from hybridflow.trainer.objectives import PolicyObjective
from hybridflow.types import Mismatch, TrainBatch, UpdateReport
from megatron_ext.packing.micro_batch import MicroBatch
from megatron_ext.packing.sums import LossFn, LossSums
from megatron_ext.policy import MegatronPolicy, TrainStepResult


def update_policy(
    policy: MegatronPolicy,
    batch: TrainBatch,
    learning_rate: float,
    *,
    algorithm: AlgorithmSection,
    temperature: float,
    num_epochs: int = 1,
) -> list[UpdateReport]:
    """One policy gradient step per mini-batch, `num_epochs` times over; a report of each. Collective over all ranks.

    Old log-probabilities are those of the policy that the batch arrives at, at the sampling temperature. The first
    mini-batch meets that policy itself, so they are computed for the others, before the first optimizer step, and for
    all where there are several epochs.
    """
    num_minis = len(batch.plan)
    minis = [pack_rank(batch, policy.topology.dp_rank, mini, policy.loss_dtype) for mini in range(num_minis)]
    first_off_policy = 0 if num_epochs > 1 else 1
    minis[first_off_policy:] = _with_old_logprobs(policy, minis[first_off_policy:], temperature)
    reports = []
    for epoch in range(num_epochs):
        for mini, micro_batches in enumerate(minis):
            objective = PolicyObjective(
                clip_low=algorithm.clip_low,
                clip_high=algorithm.clip_high,
                is_on_policy=mini < first_off_policy,
                num_ages=batch.num_ages,
            )
            span = f"update, epoch {epoch + 1} of {num_epochs}, mini-batch {mini + 1} of {num_minis}"
            enter(span)
            result = policy.train_step(
                micro_batches,
                _with_signs_of_life(objective, span),
                lr=learning_rate,
                temperature=temperature,
                with_entropy=epoch == 0,  # it is reported of the policy that decoded, and is not free
            )
            reports.append(build_update_report(result, epoch=epoch, mini_batch=mini, num_ages=batch.num_ages))
    return reports


def _with_signs_of_life(objective: PolicyObjective, span: str) -> LossFn:
    """The objective, with a span per micro-batch: a long update is not taken for a stall."""
    numbers = itertools.count(1)

    def call(logprobs_N: Tensor, entropy_N: Tensor | None, micro_batch: MicroBatch) -> LossSums:
        enter(f"{span}, loss of micro-batch {next(numbers)}")
        return objective(logprobs_N, entropy_N, micro_batch)

    return call


def _with_old_logprobs(
    policy: MegatronPolicy, minis: list[list[MicroBatch]], temperature: float
) -> list[list[MicroBatch]]:
    """The same mini-batches with `old_logprobs` of the present policy; on the last stage, which has them."""
    if not minis:
        return minis
    enter("old log-probabilities")
    flat = [micro_batch for micro_batches in minis for micro_batch in micro_batches]
    outputs = policy.logprobs(flat, temperature=temperature)
    if outputs is None:
        return minis
    filled = iter(
        dataclasses.replace(micro_batch, loss_inputs=micro_batch.loss_inputs | {"old_logprobs": logprobs_N})
        for micro_batch, (logprobs_N, _) in zip(flat, outputs, strict=True)
    )
    return [[next(filled) for _ in micro_batches] for micro_batches in minis]


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
