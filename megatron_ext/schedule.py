"""Runs micro-batches through the pipeline with Megatron's schedules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ext import platform
from megatron_ext.attention.context_split import RankBatch, cut_micro_batch
from megatron_ext.attention.packed import PackedSegments, build_packed_segments
from megatron_ext.model.routing_replay import Routing, sum_disagreement
from megatron_ext.packing.micro_batch import MicroBatch
from megatron_ext.packing.rows import Rows
from megatron_ext.packing.sampling_mask import SAMPLING_MASK
from megatron_ext.packing.sums import LossFn, LossSums, StepSums
from megatron_ext.parallel.topology import Topology

platform.install()

from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402
from megatron.core.utils import get_model_config  # noqa: E402

__all__ = ["LossFn", "LossSums", "StepSums", "check_pipeline_exchange", "run_forward", "run_forward_backward"]


class Output(NamedTuple):
    """The output of the last stage for a micro-batch."""

    logprobs_N: Tensor
    entropy_N: Tensor | None

    @property
    def device(self) -> torch.device:
        """Megatron asks an output for it when the model has experts."""
        return self.logprobs_N.device


@torch.no_grad()
def run_forward(
    chunks: Sequence[torch.nn.Module],
    topology: Topology,
    micro_batches: Sequence[MicroBatch],
    *,
    temperature: float,
    with_entropy: bool = False,
    replays_routing: bool = False,
) -> list[Output] | None:
    """Log-probabilities (and entropies) of each micro-batch, in order, on last-stage ranks; None on the others.

    All ranks of a pipeline, and all context parallel ranks, pass the same whole micro-batches; each computes its part.
    What comes back is whole again: a value for each of a micro-batch's predicted positions, in its order, on every
    context parallel rank. Raises ValueError for no micro-batches, and for routed experts that would not be replayed.
    """

    def keep(micro_batch: MicroBatch, output: Output, non_loss_data: bool = True) -> Output:
        return output

    prepared = _prepare(chunks, topology, micro_batches, replays_routing)
    outputs = _run(chunks, topology, prepared, keep, temperature, with_entropy, forward_only=True)
    if not topology.is_last_stage:
        return None
    pairs = zip(micro_batches, prepared, outputs, strict=False)  # without the fill of a virtual pipeline
    return [_whole_output(micro_batch, item.rank_batch, output, topology) for micro_batch, item, output in pairs]


def run_forward_backward(
    chunks: Sequence[torch.nn.Module],
    topology: Topology,
    micro_batches: Sequence[MicroBatch],
    loss_fn: LossFn,
    *,
    temperature: float,
    with_entropy: bool = False,
    replays_routing: bool = False,
) -> StepSums:
    """Leaves in the model the gradient of (sum of losses) / (sum of tokens), both over data and context parallel ranks.

    So the result does not depend on how rows are packed, ordered or spread. Data parallel ranks may pass different
    numbers of micro-batches, but at least one each (ValueError). All ranks return the same sums.

    All ranks of a pipeline, and all context parallel ranks, pass the same whole micro-batches. The loss callback gets
    this rank's part: its log-probabilities, and a micro-batch with its tokens and its rows of the loss inputs.
    """

    def reduce_loss(micro_batch: MicroBatch, output: Output) -> tuple[Tensor, Tensor, _Record]:
        sums = loss_fn(*output, micro_batch)
        num_tokens = torch.as_tensor(sums.num_tokens, device=sums.loss.device).to(torch.int)
        scalars = {name: value.detach() for name, value in sums.metrics.items()}
        scalars |= {_LOSS: sums.loss.detach(), _NUM_TOKENS: num_tokens}
        return sums.loss, num_tokens, _Record(scalars, {name: value.detach() for name, value in sums.maxima.items()})

    prepared = _prepare(chunks, topology, micro_batches, replays_routing)
    records = _run(chunks, topology, prepared, reduce_loss, temperature, with_entropy, forward_only=False)
    sums = _reduce_over_ranks(records, topology)
    if not replays_routing:
        return sums
    routings = [item.segments.routing for item in prepared]
    return dataclasses.replace(sums, routing=sum_disagreement(routings, get_model_config(chunks[0]), topology))


_LOSS = "loss of the step"
_NUM_TOKENS = "tokens of the step"


class _Record(NamedTuple):
    """Scalars of one micro-batch, by name."""

    sums: dict[str, Tensor]
    maxima: dict[str, Tensor]


@dataclass(frozen=True)
class _Prepared:
    """A micro-batch as this rank computes it."""

    rank_batch: RankBatch
    segments: PackedSegments


def _prepare(
    chunks: Sequence[torch.nn.Module], topology: Topology, micro_batches: Sequence[MicroBatch], replays_routing: bool
) -> list[_Prepared]:
    """This rank's part of each micro-batch, and of the empty ones that the schedule needs at the end."""
    if not micro_batches:
        raise ValueError("no micro-batches: a rank without rows passes one that predicts nothing")
    config = get_model_config(chunks[0])
    check_pipeline_exchange(config)
    num_needed = _most_of_peers(len(micro_batches), topology)
    # A virtual pipeline takes micro-batches in groups of as many as there are stages.
    num_needed += -num_needed % topology.pp_size if len(chunks) > 1 else 0
    num_missing = num_needed - len(micro_batches)
    pad_to_multiple = topology.tp_size if config.sequence_parallel else 1
    prepared = []
    for micro_batch in [*micro_batches, *[_empty_like(micro_batches[0])] * num_missing]:
        cut = cut_micro_batch(micro_batch, topology.cp_size, topology.cp_rank, pad_to_multiple)
        part = cut.micro_batch.to(topology.device)
        part = dataclasses.replace(part, rows=part.rows.over(topology.cp_group))
        cut = dataclasses.replace(cut, micro_batch=part)
        segments = build_packed_segments(cut, topology.cp_group, topology.device)
        if replays_routing:
            routing = Routing(part.routed_experts, config, part.num_tokens, topology)
            segments = dataclasses.replace(segments, routing=routing)
        elif part.routed_experts is not None:
            raise ValueError("a micro-batch has routed experts, and the policy was opened without routing_replay")
        prepared.append(_Prepared(cut, segments))
    return prepared


def _most_of_peers(num_micro_batches: int, topology: Topology) -> int:
    """Micro-batches of the data parallel rank with the most, where ranks hold experts for each other; else one's own.

    A rank that stopped earlier would leave the others waiting for its experts.
    """
    if topology.ep_size * topology.etp_size == 1 or topology.num_replicas == 1:
        return num_micro_batches
    most = torch.tensor(num_micro_batches, device=topology.device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX, group=topology.dp_group)
    return int(most)


def check_pipeline_exchange(config: TransformerConfig) -> None:
    """Raises ValueError for the exchange that computes wrong values without a word (megatron-core 0.16.1).

    A virtual pipeline with batched sends and receives puts those to the next and to the previous stage into one batch.
    With two stages both are the same rank, messages are matched by order, and gradients arrive as activations. Tested
    by tests/dist_cpu/test_pipeline_exchange.py, which says when the guard can go.
    """
    if config.virtual_pipeline_model_parallel_size and (config.batch_p2p_comm or not config.overlap_p2p_comm):
        raise ValueError(
            f"overlap_p2p_comm = {config.overlap_p2p_comm}, batch_p2p_comm = {config.batch_p2p_comm} with vpp = "
            f"{config.virtual_pipeline_model_parallel_size}: batched exchange mixes up messages of two stages; "
            "set overlap_p2p_comm = True and batch_p2p_comm = False"
        )


def _empty_like(micro_batch: MicroBatch) -> MicroBatch:
    """One token that predicts nothing, with the same loss inputs."""
    nothing = micro_batch.predict_index_N[:0]
    return MicroBatch(
        tokens_T=micro_batch.tokens_T[:1],
        position_ids_T=micro_batch.position_ids_T[:1],
        cu_seqlens=torch.tensor([0, 1], dtype=torch.int32),
        max_seqlen=1,
        predict_index_N=nothing,
        targets_N=nothing,
        rows=Rows.of([0], [0], [0]),
        loss_inputs={name: value[:0] for name, value in micro_batch.loss_inputs.items()},
        ragged_inputs={name: value.select(nothing) for name, value in micro_batch.ragged_inputs.items()},
    )


def _run(
    chunks: Sequence[torch.nn.Module],
    topology: Topology,
    prepared: Sequence[_Prepared],
    consume: Callable[..., Any],
    temperature: float,
    with_entropy: bool,
    forward_only: bool,
) -> list[Any]:
    """The results of `consume` for each micro-batch, on the last stage; an empty list elsewhere."""

    def forward_step(batches: Iterator[_Prepared], chunk: torch.nn.Module) -> tuple[Any, Callable[..., Any]]:
        item = next(batches)
        micro_batch = item.rank_batch.micro_batch
        output = chunk(
            micro_batch.tokens_T,
            micro_batch.position_ids_T,
            packed_seq_params=item.segments,
            predict_index_N=micro_batch.predict_index_N,
            targets_N=micro_batch.targets_N,
            sampling_mask=micro_batch.ragged_inputs.get(SAMPLING_MASK),
            temperature=temperature,
            with_entropy=with_entropy,
        )
        if isinstance(output, tuple):
            output = Output(*output)
        return output, partial(consume, micro_batch)

    # Each chunk of a virtual pipeline goes through all micro-batches. Megatron wants lists then, and only then.
    is_virtual = len(chunks) > 1
    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=[iter(prepared) for _ in chunks] if is_virtual else iter(prepared),
        model=list(chunks) if is_virtual else chunks[0],
        num_microbatches=len(prepared),
        # Only a default: stages exchange the true length of each micro-batch.
        seq_length=prepared[0].rank_batch.micro_batch.num_tokens * topology.cp_size,
        micro_batch_size=1,
        forward_only=forward_only,
        collect_non_loss_data=forward_only,
    )


def _whole_output(micro_batch: MicroBatch, rank_batch: RankBatch, output: Output, topology: Topology) -> Output:
    """Values of all context parallel ranks, in the order of `micro_batch`. Collective over them."""
    if topology.cp_size == 1:
        return output
    logprobs_R, entropy_R = output
    parts = [logprobs_R] if entropy_R is None else [logprobs_R, entropy_R]
    whole_KN = logprobs_R.new_zeros((len(parts), micro_batch.predict_index_N.numel()))
    whole_KN[:, rank_batch.predicted_R.to(whole_KN.device)] = torch.stack(parts)
    dist.all_reduce(whole_KN, group=topology.cp_group)  # every position is on one rank: a sum with zeros
    return Output(whole_KN[0], None if entropy_R is None else whole_KN[1])


def _reduce_over_ranks(records: list[_Record], topology: Topology) -> StepSums:
    """Joins the records of this rank and of its data and context parallel peers, and tells the earlier stages."""
    sums: dict[str, float] = {}
    maxima: dict[str, float] = {}
    if topology.is_last_stage:
        sums = _reduce_scalars([record.sums for record in records], topology, dist.ReduceOp.SUM)
        maxima = _reduce_scalars([record.maxima for record in records], topology, dist.ReduceOp.MAX)
    if topology.pp_size > 1:
        message = [sums, maxima]
        dist.broadcast_object_list(message, src=topology.last_stage_rank, group=topology.pp_group)
        sums, maxima = message
    loss, num_tokens = sums.pop(_LOSS), int(sums.pop(_NUM_TOKENS))
    return StepSums(loss=loss, num_tokens=num_tokens, metrics=sums, maxima=maxima)


def _reduce_scalars(
    records: list[dict[str, Tensor]], topology: Topology, operation: dist.ReduceOp.RedOpType
) -> dict[str, float]:
    """Sum or maximum by name, over micro-batches and then ranks, in float64."""
    names = sorted(records[0])
    if not names:
        return {}
    values_RK = torch.stack([torch.stack([record[name].double() for name in names]) for record in records])
    values_K = values_RK.sum(0) if operation == dist.ReduceOp.SUM else values_RK.amax(0)
    if topology.num_replicas > 1:
        dist.all_reduce(values_K, operation, group=topology.dp_group)
    return dict(zip(names, values_K.tolist(), strict=True))
