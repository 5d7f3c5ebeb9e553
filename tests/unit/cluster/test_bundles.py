"""Slots are in order of nodes and GPUs, whatever the order of Ray's bundles."""

from __future__ import annotations

import random

import pytest

from hybridflow.cluster.bundles import Place, order_bundles

RAY_24 = [0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 2, 2, 2]
"""Nodes of 24 bundles on 3 x 8 GPUs, as Ray 2.60 gave them."""


def slots(nodes: list[int], seed: int = 0) -> list[tuple[str, int]]:
    """(node, GPU) of each slot where Ray gave bundles of these nodes, and GPUs of a node in any order."""
    free = {node: random.Random(seed + node).sample(range(8), 8) for node in set(nodes)}
    places = [Place(f"id-{9 - node}", f"10.0.0.{7 + 2 * node}", free[node].pop()) for node in nodes]
    order = order_bundles(places)
    assert sorted(order) == list(range(len(nodes)))
    return [(places[bundle].node, places[bundle].gpu) for bundle in order]


@pytest.mark.parametrize("nodes", [RAY_24, RAY_24[::-1], [3, *RAY_24, *[3] * 7], [0] * 8, [1, 0] * 8])
def test_neighbouring_slots_are_neighbouring_gpus_of_one_node(nodes: list[int]) -> None:
    expected = [(f"id-{9 - node}", gpu) for node in sorted(set(nodes)) for gpu in range(8)]
    assert slots(nodes) == slots(nodes, seed=1) == expected


def test_addresses_are_numbers_and_fuller_nodes_come_first() -> None:
    places = [Place("a", "10.0.0.10"), Place("b", "10.0.0.9"), Place("c", "10.0.0.1"), Place("a", "10.0.0.10", 1)]
    places.append(Place("b", "10.0.0.9", 5))
    assert order_bundles(places) == [1, 4, 0, 3, 2]


def test_on_one_cpu_machine_slots_are_rays_bundles() -> None:
    assert order_bundles([Place("n", "127.0.0.1")] * 20) == list(range(20))
