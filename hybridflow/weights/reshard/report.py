"""The report of `hybridflow reshard`: what an update moves per rank, beside what gathering everything would.

Gathering everything is how other systems do the same update: every GPU gathers the whole model, and its engine takes
what it needs. For each parameter, in turn (slime, `hf_weight_iterator_direct.py`; verl and ROLL alike): the stage that
holds it broadcasts its shards to the same ranks of the other stages, then each tensor (or expert) parallel group
gathers the shards, joins them and hands whole tensors to the engine. So a GPU receives the whole model less what it
holds.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from hybridflow.weights.reshard.blocks import Block, BlockKind, model_blocks
from hybridflow.weights.reshard.placement import Engines, Link, link_between
from hybridflow.weights.reshard.plan import ReshardPlan
from hybridflow.weights.reshard.planner import plan_reshard
from hybridflow.weights.reshard.rollout_layout import RolloutLayout
from hybridflow.weights.reshard.schedule import Schedule, build_schedule
from hybridflow.weights.reshard.sources import Needs, count_needs
from hybridflow.weights.reshard.train_layout import Cut, num_parts, ranks_per_stage, stage_of
from hybridflow.weights.reshard.train_shards import train_shards
from megatron_ext.hf.config import HFConfig
from megatron_ext.parallel.layout import Layout


@dataclass(frozen=True)
class RankTraffic:
    """Traffic of one rank and its GPU, in one weight update."""

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


Sizes = dict[tuple[str, Cut], dict[int, int]]
"""Elements of a parameter on each part that holds some of it, padding left out; by Megatron name and cut."""


def compute_gather_traffic(
    hf_config: HFConfig, train: Layout, *, gpus_per_node: int, element_bytes: int, bucket_bytes: int
) -> list[RankTraffic]:
    """Per rank. A bucket holds tensors as gathered, of at most `bucket_bytes` together unless one alone is larger; its
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


@dataclass(frozen=True)
class ReshardReport:
    ranks: list[RankTraffic]
    gather_everything: list[RankTraffic]
    engines: Engines
    """GPU of each rank of each engine."""
    plan_seconds: float
    """CPU time to plan, to prove the plan and to put it into rounds; reading the model's config is not in it."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON: {"ranks": [...], "gather_everything": {"ranks": [...]}, "engines": [[GPU, ...]], "plan_seconds"};
        of each rank the fields of RankTraffic."""
        return {
            "ranks": [dataclasses.asdict(rank) for rank in self.ranks],
            "gather_everything": {"ranks": [dataclasses.asdict(rank) for rank in self.gather_everything]},
            "engines": [list(engine) for engine in self.engines],
            "plan_seconds": self.plan_seconds,
        }


def compute_report(
    hf_config: HFConfig,
    train: Layout,
    rollout: RolloutLayout,
    *,
    gpus_per_node: int,
    element_bytes: int,
    bucket_bytes: int,
) -> ReshardReport:
    """Raises ConfigError as `plan_reshard` does."""
    start = time.process_time()
    plan = plan_reshard(hf_config, train, rollout, gpus_per_node=gpus_per_node)
    schedule = build_schedule(plan, element_bytes=element_bytes, bucket_bytes=bucket_bytes)
    ranks = compute_traffic(plan, schedule)
    seconds = time.process_time() - start
    gathered = compute_gather_traffic(
        hf_config, train, gpus_per_node=gpus_per_node, element_bytes=element_bytes, bucket_bytes=bucket_bytes
    )
    return ReshardReport(ranks, gathered, plan.engines, seconds)


COLUMNS: tuple[tuple[str, Callable[[RankTraffic], int]], ...] = (
    ("on the device", lambda rank: rank.device_bytes),
    ("over NVLink", lambda rank: rank.nvlink_bytes),
    ("over the network", lambda rank: rank.network_bytes),
    ("buffer", lambda rank: rank.buffer_bytes),
)


def print_table(report: ReshardReport, console: Console | None = None) -> None:
    """GB are 10^9 bytes."""
    console = console or Console()
    table = Table(
        title="Bytes that each rank receives in a weight update",
        caption="GB of 10^9 bytes; gathered: most, if every rank gathers everything",
    )
    for name in ("rank", "engine, its rank", *(f"{name}, GB" for name, _ in COLUMNS), "buckets"):
        table.add_column(name, justify="right")
    engine_ranks = {
        gpu: f"{engine}, {rank}" for engine, gpus in enumerate(report.engines) for rank, gpu in enumerate(gpus)
    }
    for rank in report.ranks:
        table.add_row(str(rank.rank), engine_ranks[rank.rank], *_gigabytes(rank), str(rank.buckets))
    table.add_section()
    for name, ranks in (("most", report.ranks), ("gathered", report.gather_everything)):
        most = [f"{max(map(value, ranks)) / 1e9:.3f}" for _, value in COLUMNS]
        table.add_row(name, "", *most, str(ranks[0].buckets))
    console.print(table)
    moved, gathered = (max(rank.moved_bytes for rank in ranks) for ranks in (report.ranks, report.gather_everything))
    console.print(
        f"From other GPUs: at most {moved / 1e9:.3f} GB per rank; {gathered / 1e9:.3f} GB if all gather the model."
        f"\nEngines on GPUs: {' | '.join(' '.join(map(str, engine)) for engine in report.engines)}"
        f"\nPlanned and proven exact in {report.plan_seconds:.3f} s of CPU time.",
        highlight=False,
    )


def _gigabytes(rank: RankTraffic) -> list[str]:
    return [f"{value(rank) / 1e9:.3f}" for _, value in COLUMNS]
