"""Loss callback, between Megatron's schedule and the objective.

Shape legend: N counted tokens of the micro-batch, on this rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hybridflow.algorithms.objective import ENTROPY, OLD_LOGPROBS, Objective, TokenBatch
from megatron_ext.packing.micro_batch import MicroBatch
from megatron_ext.packing.sums import LossSums


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
