"""Settings of resharding: enough for every train worker to make the same schedule for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hybridflow.weights.reshard.placement import Engines
from hybridflow.weights.reshard.planner import plan_reshard
from hybridflow.weights.reshard.rollout_layout import RolloutLayout
from hybridflow.weights.reshard.schedule import Schedule, build_schedule
from hybridflow.weights.reshard.shard_bucket import Verify
from megatron_ext.hf.config import HFConfig
from megatron_ext.parallel.layout import Layout


@dataclass(frozen=True)
class ReshardSettings:
    rollout: RolloutLayout
    engines: Engines
    """Where they run: for each engine, the train worker beside each of its ranks."""
    bucket_bytes: int
    gpus_per_node: int = 1
    """Neighbouring ranks that are on one machine."""
    verify: Verify = "sample"
    """As `rollout.verify_weights`."""

    def schedule(self, hf_config: HFConfig, train: Layout, element_bytes: int) -> Schedule:
        """Pure. Raises ConfigError, naming the key, if the layouts do not fit the model or each other."""
        plan = plan_reshard(hf_config, train, self.rollout, gpus_per_node=self.gpus_per_node, engines=self.engines)
        return build_schedule(plan, element_bytes=element_bytes, bucket_bytes=self.bucket_bytes)


def engine_slots(num_engines: int, tp: int, placed: Engines = ()) -> Engines:
    """Slots of the ranks of each engine: of the first as `placed`, of those beyond in order, engine i from i x tp."""
    return tuple(
        placed[engine] if engine < len(placed) else tuple(range(engine * tp, (engine + 1) * tp))
        for engine in range(num_engines)
    )


def ranks_per_machine(machines: Sequence[str]) -> int:
    """The largest number of neighbouring ranks such that each run of so many is on one machine; [rank] -> machine."""
    for size in range(len(machines), 1, -1):
        if all(len(set(machines[start : start + size])) == 1 for start in range(0, len(machines), size)):
            return size
    return 1
