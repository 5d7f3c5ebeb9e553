"""Reports of engines on the memory that they take."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from sglang.srt.managers.scheduler_components.memory_usage import build_memory_usage

from hybridflow.config.rollout_section import RolloutSection
from hybridflow.observability.reporter import Notes
from hybridflow.rollout.driver.engine_group import EngineGroup
from hybridflow.rollout.driver.opening import RolloutSettings
from hybridflow.rollout.engine.memory import reported_bytes

GIB = 2**30


def test_what_sglang_reports_is_read_in_bytes() -> None:
    usage = build_memory_usage(
        weight_gb=1.25,
        kv_cache_gb=40.5,
        startup_available_gb=70.0,
        token_capacity=1000,
        token_capacity_swa=None,
        target_graph_memory_usage={"decode": 0.5, "prefill": 0.125},
        draft_graph_memory_usage=None,
    )
    found = reported_bytes(usage)
    assert found == {"kv_cache": 40.5 * GIB, "weights": 1.25 * GIB, "cuda_graph": 0.625 * GIB}


def test_of_several_engines_the_largest_rank_counts() -> None:
    """Each rank has a device of its own; an engine that starts has given nothing back."""

    def handle(name: str, taken: dict[str, int] | None) -> Any:
        return SimpleNamespace(name=name, facts=None if taken is None else SimpleNamespace(taken_bytes=taken))

    group = EngineGroup(RolloutSettings(RolloutSection(num_engines=3), "float32", 0), Notes())
    group.add(handle("engine-0", {"kv_cache": 7, "weights": 3, "cuda_graph": 2}))
    group.add(handle("engine-1", {"kv_cache": 9, "weights": 4, "cuda_graph": 0}))
    group.add(handle("engine-2", None))
    assert (group.taken_bytes(["kv_cache"]), group.taken_bytes(["weights", "cuda_graph"])) == (9, 5)
