"""GPU reservations for the ranks of an engine whose processes Ray does not start.

SGLang starts the processes of all ranks of an engine itself, from one actor in one slot. A reservation is an empty
actor in the slot of each further rank: Ray then counts every rank where it runs, and the reservation says which GPU
that is. On a CPU it holds a share of the slot's cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from hybridflow.cluster.devices import DEVICE_ENVIRONMENT, check_engine_devices, this_device
from hybridflow.cluster.session import Slots
from hybridflow.errors import PlacementError


class GpuReservation:
    """Holds a share of its slot for as long as it lives."""

    def where(self) -> tuple[str, str | None]:
        """Node, and name of the GPU on it; None on a CPU."""
        return ray.get_runtime_context().get_node_id(), this_device()


def reserve_gpus(slots: Slots, indices: Sequence[int], share: float) -> list[Any]:
    """Actors that take `share` of each of the slots; they end when nobody refers to them any more."""
    return [
        ray.remote(GpuReservation)
        .options(
            num_cpus=share,
            num_gpus=share * slots.gpus_per_slot,
            scheduling_strategy=slots.strategy(index),
            runtime_env={"env_vars": DEVICE_ENVIRONMENT},
            max_restarts=0,
        )
        .remote()
        for index in indices
    ]


def devices_of(name: str, reservations: Sequence[Any]) -> list[str] | None:
    """Inside the actor of engine `name`: GPUs of this slot and of its reservations, by rank; None on a CPU.

    Raises PlacementError if a rank is on another node than this one, or on a GPU that another rank is on.
    """
    here, own = ray.get_runtime_context().get_node_id(), this_device()
    places = ray.get([reservation.where.remote() for reservation in reservations])
    elsewhere = [rank for rank, (node, _) in enumerate(places, start=1) if node != here]
    if elsewhere:
        raise PlacementError(
            f"{name}: its ranks {elsewhere} are in slots on other nodes than rank 0, and an engine runs on one node. "
            f"Choose a rollout.tp_size that divides the GPUs of a node"
        )
    if own is None:
        return None
    devices = [own, *(device for _, device in places if device is not None)]
    check_engine_devices(name, devices)
    return devices
