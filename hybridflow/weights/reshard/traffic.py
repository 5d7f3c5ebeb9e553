"""The traffic of a reshard at each rank: bytes received, by the way they come, buffers and buckets."""

from __future__ import annotations

from dataclasses import dataclass

from hybridflow.weights.reshard.placement import Link
from hybridflow.weights.reshard.plan import ReshardPlan
from hybridflow.weights.reshard.schedule import Schedule
from hybridflow.weights.reshard.sources import Needs, count_needs


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
