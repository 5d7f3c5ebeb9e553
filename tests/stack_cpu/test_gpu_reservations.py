"""Every rank of an engine is counted by Ray in its own slot; the real Ray, no engine."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import ray

from hybridflow.cluster.gpu_reservations import devices_of, reserve_gpus
from hybridflow.cluster.session import Slots, start_session, stop_session
from hybridflow.errors import PlacementError

pytestmark = [pytest.mark.stack_cpu, pytest.mark.timeout(120)]

SHARE = 0.4


@pytest.fixture(scope="module")
def slots() -> Iterator[Slots]:
    start_session(3)
    try:
        yield Slots(3)
    finally:
        stop_session()


def free_cpus(slots: Slots) -> list[float]:
    """Logical CPUs left of each slot; Ray leaves out what is taken whole."""
    resources = ray.available_resources()
    (group,) = {name.rsplit("_", 1)[1] for name in resources if name.startswith("CPU_group_0_")}
    return [round(resources.get(f"CPU_group_{index}_{group}", 0.0), 3) for index in range(slots.num_slots)]


def test_a_seat_takes_its_share_of_its_own_slot_and_says_where_it_is(slots: Slots) -> None:
    node = ray.get_runtime_context().get_node_id()
    assert slots.nodes() == [node] * 3
    reservations = reserve_gpus(slots, [1, 2], SHARE)
    assert ray.get([reservation.where.remote() for reservation in reservations]) == [(node, None), (node, None)]
    assert free_cpus(slots) == [1.0, 0.6, 0.6]
    assert devices_of("engine-0", reservations) is None


def test_a_rank_on_another_node_is_named(slots: Slots) -> None:
    elsewhere = SimpleNamespace(where=SimpleNamespace(remote=lambda: ray.put(("another node", None))))
    with pytest.raises(PlacementError, match=r"engine-3: its ranks \[1\] are in slots on other nodes than rank 0"):
        devices_of("engine-3", [elsewhere])
