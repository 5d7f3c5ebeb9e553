"""The optimizer steps of one batch, mini-batch by mini-batch, and the loss callback that Megatron's schedule calls.

Shape legend: N counted tokens of the micro-batch, on this rank.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

from torch import Tensor

from hybridflow.algorithms.objective import (
    ENTROPY,
    OLD_LOGPROBS,
    Objective,
    TokenBatch,
    build_objective,
)
from hybridflow.algorithms.reductions import TOKENS, build_update_metrics
from hybridflow.algorithms.spec import ObjectiveSpec
from hybridflow.observability.span import enter
from hybridflow.trainer.batch import pack_rank
from hybridflow.trainer.routing import build_routing_metrics
from hybridflow.types import TrainBatch, UpdateReport
from megatron_ext.packing.micro_batch import MicroBatch
from megatron_ext.packing.sums import LossFn, LossSums
from megatron_ext.policy import MegatronPolicy, TrainStepResult


@dataclass(frozen=True)
class LossCallback:
    """The callback of Megatron's schedule on the logprobs of one micro-batch; gives SUMS over its tokens.

    megatron_ext divides by the denominator of the whole optimizer step, over all micro-batches and data parallel ranks.
    """

    objective: Objective
    is_on_policy: bool = False
    """The policy is still the one that decoded, so the old log-probabilities are those of this pass, detached."""

    def __call__(self, logprobs_N: Tensor, entropy_N: Tensor | None, micro_batch: MicroBatch) -> LossSums:
        columns = dict(micro_batch.loss_inputs)
        if self.is_on_policy:
            columns[OLD_LOGPROBS] = logprobs_N.detach()
        if entropy_N is not None:
            columns[ENTROPY] = entropy_N
        loss, denominator, metrics = self.objective(TokenBatch(logprobs_N, columns, micro_batch.rows))
        return LossSums(loss=loss, num_tokens=denominator, metrics=metrics.sums, maxima=metrics.maxima)


def update_policy(
    policy: MegatronPolicy,
    batch: TrainBatch,
    learning_rate: float,
    *,
    objective: ObjectiveSpec,
    num_epochs: int = 1,
) -> list[UpdateReport]:
    """One gradient step per mini-batch, `num_epochs` times over; a report of each. Collective over all ranks.

    Old log-probabilities, where the objective asks for them, are those of the policy that the batch arrives at. The
    first mini-batch meets that policy itself, so they are computed for the others, before the first optimizer step, and
    for all where there are several epochs; unless they were measured already and come with the rows. Those of a
    reference always do.
    """
    passes = [
        build_objective(objective, num_ages=batch.num_ages, top_p=batch.top_p, is_first_pass=epoch == 0)
        for epoch in range(num_epochs)
    ]
    computed_here = {ENTROPY} if OLD_LOGPROBS in batch.measured else {ENTROPY, OLD_LOGPROBS}
    columns = sorted({name for one in passes for name in one.columns} - computed_here)
    num_minis = len(batch.plan)
    minis = [pack_rank(batch, policy.topology.dp_rank, columns, mini, policy.loss_dtype) for mini in range(num_minis)]
    first_off_policy = 0 if num_epochs > 1 else 1
    if OLD_LOGPROBS in passes[0].columns and OLD_LOGPROBS in computed_here:
        minis[first_off_policy:] = _with_old_logprobs(policy, minis[first_off_policy:], batch.temperature)
    reports = []
    for epoch, mini in itertools.product(range(num_epochs), range(num_minis)):
        span = f"update, epoch {epoch + 1} of {num_epochs}, mini-batch {mini + 1} of {num_minis}"
        enter(span)
        result = policy.train_step(
            minis[mini],
            _with_signs_of_life(LossCallback(passes[epoch], is_on_policy=mini < first_off_policy), span),
            lr=learning_rate,
            temperature=batch.temperature,
            with_entropy=ENTROPY in passes[epoch].columns,  # it is not free
        )
        reports.append(build_update_report(result, passes[epoch], epoch=epoch, mini_batch=mini))
    return reports


def _with_signs_of_life(callback: LossFn, span: str) -> LossFn:
    """The callback, with a span per micro-batch: a long update is not taken for a stall."""
    numbers = itertools.count(1)

    def call(logprobs_N: Tensor, entropy_N: Tensor | None, micro_batch: MicroBatch) -> LossSums:
        enter(f"{span}, loss of micro-batch {next(numbers)}")
        return callback(logprobs_N, entropy_N, micro_batch)

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
        dataclasses.replace(micro_batch, loss_inputs=micro_batch.loss_inputs | {OLD_LOGPROBS: logprobs_N})
        for micro_batch, (logprobs_N, _) in zip(flat, outputs, strict=True)
    )
    return [[next(filled) for _ in micro_batches] for micro_batches in minis]


def build_update_report(
    result: TrainStepResult, objective: Objective, *, epoch: int = 0, mini_batch: int = 0
) -> UpdateReport:
    """The result with the objective's metrics by name."""
    return UpdateReport(
        loss=result.loss,
        grad_norm=result.grad_norm,
        num_tokens=result.num_tokens,
        num_response_tokens=int(result.sums[TOKENS]),
        num_skipped=int(result.skipped),
        epoch=epoch,
        mini_batch=mini_batch,
        metrics=build_update_metrics(objective.metrics, result.sums, result.maxima, objective.num_ages)
        | build_routing_metrics(result.routing),
    )
