"""Traffic of a reshard at each rank: bytes received, by the way they come, buffers and buckets.

Beside it the same update as other systems do it: every GPU gathers the whole model, and its engine takes what it needs.
For each parameter, in turn (slime, `hf_weight_iterator_direct.py`; verl and ROLL alike): the stage that holds it
broadcasts its shards to the same ranks of the other stages, then each tensor (or expert) parallel group gathers the
shards, joins them and hands whole tensors to the engine. So a GPU receives the whole model less what it holds.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from hybridflow.weights.reshard.blocks import Block, BlockKind, model_blocks
from hybridflow.weights.reshard.placement import Link, link_between
from hybridflow.weights.reshard.plan import ReshardPlan
from hybridflow.weights.reshard.schedule import Schedule
from hybridflow.weights.reshard.sources import Needs, count_needs
from hybridflow.weights.reshard.train_layout import Cut, num_parts, ranks_per_stage, stage_of
from hybridflow.weights.reshard.train_shards import train_shards
from megatron_ext.hf.config import HFConfig
from megatron_ext.parallel.layout import Layout

Sizes = dict[tuple[str, Cut], dict[int, int]]
"""Elements of a parameter on each part that holds some of it, padding left out; by Megatron name and cut."""


@dataclass(frozen=True)
class RankTraffic:
    """Traffic of one rank and its GPU, in one weight sync."""

    rank: int
    device_bytes: int
    """Copied within the GPU's own memory."""
    nvlink_bytes: int
    """Received from other GPUs of the node."""
    network_bytes: int
    """Received from GPUs of other nodes."""
    buffer_bytes: int
    """High-water mark of what the update takes beside the weights themselves."""
    buckets: int

    @property
    def moved_bytes(self) -> int:
        """Received from other GPUs."""
        return self.nvlink_bytes + self.network_bytes


def compute_traffic(plan: ReshardPlan, schedule: Schedule) -> list[RankTraffic]:
    """Exact, from the numbers of elements; equal to adding up `plan.copies_to`."""
    needs = count_needs(plan.blocks, plan.patterns, plan.rollout.tp)
    return [_traffic_of(gpu, needs, plan, schedule) for gpu in range(plan.world_size)]


def _traffic_of(gpu: int, needs: Needs, plan: ReshardPlan, schedule: Schedule) -> RankTraffic:
    received = dict.fromkeys(Link, 0)
    needed = needs[plan.tp_rank_of[gpu]] if gpu in plan.tp_rank_of else {}
    for supply, elements in needed.items():
        received[plan.link(plan.sources[gpu, supply], gpu)] += elements * schedule.element_bytes
    return RankTraffic(
        gpu,
        received[Link.DEVICE],
        received[Link.NVLINK],
        received[Link.NETWORK],
        schedule.buffer_bytes(gpu),
        len(schedule.rounds),
    )


def compute_gather_traffic(
    hf_config: HFConfig, train: Layout, *, gpus_per_node: int, element_bytes: int, bucket_bytes: int
) -> list[RankTraffic]:
    """Traffic of gathering everything, per rank.

    A bucket holds tensors as gathered, of at most `bucket_bytes` together unless one alone is larger; its
    buffer is twice that, the shards and the tensors joined from them. (Systems keep up to four times.)"""
    blocks = [block for block in model_blocks(hf_config, train) if not _is_tied_head(block, hf_config)]
    sizes = {kind: _sizes_of_kind(kind, hf_config, train) for kind in {block.kind for block in blocks}}
    largest, num_buckets = _fill_buckets(blocks, sizes, element_bytes, bucket_bytes)
    held: dict[tuple[int, Cut], dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for block in blocks:
        for (_, cut), parts in sizes[block.kind].items():
            for index, elements in parts.items():
                held[block.stages[0], cut][index] += elements * element_bytes
    traffic = []
    for rank in range(train.world_size):
        received = _received(rank, held, train, gpus_per_node)
        links = (received[Link.DEVICE], received[Link.NVLINK], received[Link.NETWORK])
        traffic.append(RankTraffic(rank, *links, 2 * largest, num_buckets))
    return traffic


def _is_tied_head(block: Block, hf_config: HFConfig) -> bool:
    return block.kind is BlockKind.HEAD and hf_config.tied_embeddings


def _sizes_of_kind(kind: BlockKind, hf_config: HFConfig, train: Layout) -> Sizes:
    sizes: Sizes = defaultdict(dict)
    for part, shard in train_shards(kind, hf_config, train):
        # Experts of one index within their ranks are gathered together, as one parameter.
        elements = sum(segment.region.size for segment in shard.segments)
        sizes[shard.name, part.cut][part.number] = elements
    return sizes


def _fill_buckets(
    blocks: list[Block], sizes: dict[BlockKind, Sizes], element_bytes: int, bucket_bytes: int
) -> tuple[int, int]:
    """Bytes of the largest bucket, and the number of buckets."""
    buckets = [0]
    for block in blocks:
        for parts in sizes[block.kind].values():
            size = sum(parts.values()) * element_bytes
            if buckets[-1] and buckets[-1] + size > bucket_bytes:
                buckets.append(0)
            buckets[-1] += size
    return max(buckets), len(buckets)


def _received(
    rank: int, held: dict[tuple[int, Cut], dict[int, int]], train: Layout, gpus_per_node: int
) -> dict[Link, int]:
    """Bytes by link: the broadcast brings the rank's own part of another stage, the gather those of its group."""
    received = dict.fromkeys(Link, 0)
    stage, within = stage_of(train, rank), rank % ranks_per_stage(train)
    for (owner, cut), parts in held.items():
        group_size = num_parts(train, cut)
        group_start = rank - within % group_size
        for index, size in parts.items():
            peer = group_start + index
            if peer == rank:
                peer = rank + (owner - stage) * ranks_per_stage(train)
            received[link_between(peer, rank, gpus_per_node)] += size
    return received
