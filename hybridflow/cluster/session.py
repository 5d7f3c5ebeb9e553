"""The Ray session of a run: a private one on this machine, or the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import logging
import os

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hybridflow.errors import PlacementError

logger = logging.getLogger(__name__)

LOCAL_OBJECT_STORE_BYTES = 512 * 2**20
WAIT_NOTICE_S = 30.0
PLACEMENT_TIMEOUT_S = 300.0


def start_session(num_slots: int) -> None:
    """Joins the cluster of RAY_ADDRESS if set, else starts Ray here with `num_slots` logical CPUs.

    The logical CPUs are slots for placement, not threads: a train worker and an engine share one in time.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Actors choose their devices themselves: engine and trainer of a slot must see the same ids for IPC handles.
    os.environ.setdefault("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(
            num_cpus=num_slots,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            configure_logging=False,
        )


class Slots:
    """One placement-group bundle per train worker; the engine that shares its device sits in the same bundle.

    Raises PlacementError if the cluster cannot hold them within `PLACEMENT_TIMEOUT_S`; says each 30 s what is missing.
    """

    def __init__(self, num_slots: int) -> None:
        self._group: PlacementGroup = placement_group([{"CPU": 1.0}] * num_slots, strategy="PACK")
        waited = 0.0
        while not self._group.wait(timeout_seconds=WAIT_NOTICE_S):
            waited += WAIT_NOTICE_S
            have, need = ray.cluster_resources().get("CPU", 0), num_slots
            if waited >= PLACEMENT_TIMEOUT_S:
                raise PlacementError(
                    f"no room for {need} slots of one CPU after {waited:.0f} s; the cluster has {have:g} CPUs: "
                    f"add nodes or choose a smaller train.layout"
                )
            logger.warning("waiting for %d slots of one CPU; the cluster has %g CPUs", need, have)

    def strategy(self, index: int) -> PlacementGroupSchedulingStrategy:
        """Scheduling strategy that puts an actor into slot `index`."""
        return PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)

    def release(self) -> None:
        remove_placement_group(self._group)


def stop_session() -> None:
    """Ends the private Ray session, or leaves the cluster."""
    ray.shutdown()
