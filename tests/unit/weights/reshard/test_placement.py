"""Engines stand where most of their weights are already."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hybridflow.weights.reshard.placement import assign, place_engines


@pytest.mark.parametrize("size", range(1, 7))
def test_an_assignment_is_as_good_as_the_best_of_all(size: int) -> None:
    """Against every permutation; small values, so that there are many ties."""
    generator = np.random.default_rng(size)
    for _ in range(40):
        value = generator.integers(0, 5, (size, size))
        columns = assign(value)
        assert sorted(columns) == list(range(size))
        best = max(sum(value[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(size)))
        assert value[np.arange(size), columns].sum() == best


def held_by_slices(num_gpus: int, train_tp: int, tp: int) -> np.ndarray:
    """Elements of one matrix of 840 rows: GPU g has slice g % train_tp of train_tp, rank r needs slice r of tp."""
    rows = np.arange(840)
    has = rows * train_tp // 840 == (np.arange(num_gpus) % train_tp)[:, None]
    needs = rows * tp // 840 == np.arange(tp)[:, None]
    return has.astype(np.int64) @ needs.T.astype(np.int64)


def test_ranks_stay_in_order_where_slices_match() -> None:
    assert place_engines(held_by_slices(8, 4, 4), 8) == ((0, 1, 2, 3), (4, 5, 6, 7))


def test_wide_slices_are_shared_by_two_engine_ranks() -> None:
    """Train TP 4 (two replicas), rollout TP 8: the two halves of quarter q go to the two GPUs that hold it."""
    ((*gpus,),) = place_engines(held_by_slices(8, 4, 8), 8)
    assert [gpu % 4 for gpu in gpus] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_narrow_slices_put_every_second_gpu_into_an_engine() -> None:
    """Train TP 8, rollout TP 4: each rank is on a GPU that holds half of what it needs."""
    engines = place_engines(held_by_slices(8, 8, 4), 8)
    assert [[gpu // 2 for gpu in engine] for engine in engines] == [[0, 1, 2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize(("gpus_per_node", "tp"), [(4, 8), (8, 4), (4, 3), (2, 4)])
def test_no_engine_is_on_more_nodes_than_in_order(gpus_per_node: int, tp: int) -> None:
    held = np.random.default_rng(0).integers(0, 9, (24, tp))
    engines = place_engines(held, gpus_per_node)
    assert sorted(gpu for engine in engines for gpu in engine) == list(range(24))
    for number, engine in enumerate(engines):
        in_order = {(number * tp + rank) // gpus_per_node for rank in range(tp)}
        assert {gpu // gpus_per_node for gpu in engine} == in_order


def test_few_engines_take_the_best_gpus() -> None:
    """Train TP 8 on a node, one engine of TP 4: GPUs that hold half of what the rank needs, four others stay free."""
    ((*gpus,),) = place_engines(held_by_slices(8, 8, 4), 8, num_engines=1)
    assert [gpu // 2 for gpu in gpus] == [0, 1, 2, 3]
    assert place_engines(held_by_slices(8, 4, 4), 8, num_engines=1) == ((0, 1, 2, 3),)
    assert len(place_engines(held_by_slices(8, 8, 4), 8, num_engines=5)) == 2
