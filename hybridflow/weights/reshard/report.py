"""The report of `hybridflow reshard`: what an update moves per rank, beside what gathering everything would."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from hybridflow.weights.reshard.placement import Engines
from hybridflow.weights.reshard.planner import plan_reshard
from hybridflow.weights.reshard.rollout_layout import RolloutLayout
from hybridflow.weights.reshard.schedule import build_schedule
from hybridflow.weights.reshard.traffic import RankTraffic, compute_gather_traffic, compute_traffic
from megatron_ext.hf.config import HFConfig
from megatron_ext.parallel.layout import Layout


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
    seats = {gpu: f"{engine}, {rank}" for engine, gpus in enumerate(report.engines) for rank, gpu in enumerate(gpus)}
    for rank in report.ranks:
        table.add_row(str(rank.rank), seats[rank.rank], *_gigabytes(rank), str(rank.buckets))
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
