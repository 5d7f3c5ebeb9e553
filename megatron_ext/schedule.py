"""Runs micro-batches through the pipeline with Megatron's schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ext import platform
from megatron_ext.attention import build_packed_segments
from megatron_ext.packing import MicroBatch
from megatron_ext.sums import LossFn, LossSums, StepSums
from megatron_ext.topology import Topology

platform.install()

from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402

__all__ = ["LossFn", "LossSums", "StepSums", "run_forward", "run_forward_backward"]

Output = tuple[Tensor, Tensor | None]


@torch.no_grad()
def run_forward(
    model: torch.nn.Module,
    topology: Topology,
    micro_batches: Sequence[MicroBatch],
    *,
    temperature: float,
    with_entropy: bool = False,
) -> list[Output] | None:
    """Log-probabilities (and entropies) of each micro-batch, in order, on last-stage ranks; None on the others.

    All ranks of a pipeline pass the same micro-batches. Raises ValueError for none.
    """

    def keep(micro_batch: MicroBatch, output: Output, non_loss_data: bool = True) -> Output:
        return output

    outputs = _run(model, topology, micro_batches, keep, temperature, with_entropy, forward_only=True)
    return outputs if topology.is_last_stage else None


def run_forward_backward(
    model: torch.nn.Module,
    topology: Topology,
    micro_batches: Sequence[MicroBatch],
    loss_fn: LossFn,
    *,
    temperature: float,
    with_entropy: bool = False,
) -> StepSums:
    """Leaves in the model the gradient of (sum of losses) / (sum of tokens), both over all data parallel ranks.

    So the result does not depend on how rows are packed, ordered or spread. Data parallel ranks may pass different
    numbers of micro-batches, but at least one each (ValueError). All ranks return the same sums.
    """

    def reduce_loss(micro_batch: MicroBatch, output: Output) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        sums = loss_fn(*output, micro_batch)
        num_tokens = torch.as_tensor(sums.num_tokens, device=sums.loss.device).to(torch.int)
        scalars = {name: value.detach() for name, value in sums.metrics.items()}
        return sums.loss, num_tokens, {**scalars, _LOSS: sums.loss.detach(), _NUM_TOKENS: num_tokens}

    records = _run(model, topology, micro_batches, reduce_loss, temperature, with_entropy, forward_only=False)
    return _sum_over_ranks(records, topology)


_LOSS = "loss of the step"
_NUM_TOKENS = "tokens of the step"


def _run(
    model: torch.nn.Module,
    topology: Topology,
    micro_batches: Sequence[MicroBatch],
    consume: Callable[..., Any],
    temperature: float,
    with_entropy: bool,
    forward_only: bool,
) -> list[Any]:
    """What `consume` made of each micro-batch, on the last stage; an empty list elsewhere."""
    if not micro_batches:
        raise ValueError("no micro-batches: a rank without rows passes one that predicts nothing")

    def forward_step(batches: Iterator[MicroBatch], stage: torch.nn.Module) -> tuple[Any, Callable[..., Any]]:
        micro_batch = next(batches).to(topology.device)
        segments = build_packed_segments(micro_batch.cu_seqlens, micro_batch.max_seqlen, topology.device)
        output = stage(
            micro_batch.tokens_T,
            micro_batch.position_ids_T,
            packed_seq_params=segments,
            predict_index_N=micro_batch.predict_index_N,
            targets_N=micro_batch.targets_N,
            temperature=temperature,
            with_entropy=with_entropy,
        )
        return output, partial(consume, micro_batch)

    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(micro_batches),
        model=model,
        num_microbatches=len(micro_batches),
        seq_length=micro_batches[0].num_tokens,  # only a default: stages exchange the true length of each micro-batch
        micro_batch_size=1,
        forward_only=forward_only,
        collect_non_loss_data=forward_only,
    )


def _sum_over_ranks(records: list[dict[str, Tensor]], topology: Topology) -> StepSums:
    """Adds up the records of this rank and of its data parallel peers, and tells the earlier stages."""
    sums: dict[str, float] = {}
    if topology.is_last_stage:
        names = sorted(records[0])
        values = torch.stack([torch.stack([record[name].double() for name in names]) for record in records]).sum(0)
        if topology.dp_size > 1:
            dist.all_reduce(values, group=topology.dp_group)
        sums = dict(zip(names, values.tolist(), strict=True))
    if topology.pp_size > 1:
        message = [sums]
        dist.broadcast_object_list(message, src=topology.last_stage_rank, group=topology.pp_group)
        sums = message[0]
    loss, num_tokens = sums.pop(_LOSS), int(sums.pop(_NUM_TOKENS))
    return StepSums(loss=loss, num_tokens=num_tokens, metrics=sums)
