"""A plan that is wrong in any one way is refused, and the message names what is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from hybridflow.errors import WeightSyncError
from hybridflow.weights.reshard.blocks import BlockKind
from hybridflow.weights.reshard.plan import ReshardPlan
from hybridflow.weights.reshard.planner import plan_reshard, prove_exact
from hybridflow.weights.reshard.regions import Region, find_overlap
from hybridflow.weights.reshard.rollout_layout import RolloutLayout
from hybridflow.weights.reshard.sources import Pattern, Piece
from hybridflow.weights.reshard.train_layout import Part
from megatron_ext.parallel.layout import Layout
from tests.unit.weights.reshard.test_plan import TINY

KEY = (BlockKind.DENSE_LAYER, 1)
"""The pattern that is spoilt: layers, on rank 1 of an engine."""


@pytest.fixture
def plan() -> ReshardPlan:
    return plan_reshard(TINY, Layout(tp=2, pp=2), RolloutLayout(tp=4), gpus_per_node=4)


def with_pieces(plan: ReshardPlan, change: Callable[[list[Piece]], list[Piece]]) -> ReshardPlan:
    pattern = plan.patterns[KEY]
    patterns = plan.patterns | {KEY: Pattern(pattern.targets, tuple(change(list(pattern.pieces))))}
    return dataclasses.replace(plan, patterns=patterns)


def replaced(index: int, **changes: Any) -> Callable[[list[Piece]], list[Piece]]:
    return lambda pieces: [*pieces[:index], pieces[index]._replace(**changes), *pieces[index + 1 :]]


def index_of(plan: ReshardPlan, name: str) -> int:
    pattern = plan.patterns[KEY]
    return next(i for i, piece in enumerate(pattern.pieces) if pattern.targets[piece.target].name == name)


def test_a_plan_as_made_is_proven(plan: ReshardPlan) -> None:
    prove_exact(plan)


def test_a_missing_piece_is_found(plan: ReshardPlan) -> None:
    index = index_of(plan, "mlp.down_proj.weight")
    spoilt = with_pieces(plan, lambda pieces: pieces[:index] + pieces[index + 1 :])
    with pytest.raises(WeightSyncError, match=r"engine rank 1: 0 of 3 elements of mlp.down_proj.weight are written"):
        prove_exact(spoilt)


def test_a_piece_that_comes_twice_is_found(plan: ReshardPlan) -> None:
    with pytest.raises(WeightSyncError, match="no element may be written twice"):
        prove_exact(with_pieces(plan, lambda pieces: [*pieces, pieces[0]]))


def test_two_regions_that_change_places_are_found(plan: ReshardPlan) -> None:
    """Key and value rows: every element is still written once, but not with its own."""
    query = index_of(plan, "self_attn.qkv_proj.weight")

    def swap(pieces: list[Piece]) -> list[Piece]:
        key, value = pieces[query + 1], pieces[query + 2]
        pieces[query + 1], pieces[query + 2] = key._replace(region=value.region), value._replace(region=key.region)
        return pieces

    with pytest.raises(WeightSyncError, match=r"self_attn.v_proj.weight.*self_attn.k_proj.weight"):
        prove_exact(with_pieces(plan, swap))


def test_another_row_of_the_source_is_found(plan: ReshardPlan) -> None:
    index = index_of(plan, "mlp.gate_up_proj.weight")
    origin = plan.patterns[KEY].pieces[index].origin
    with pytest.raises(WeightSyncError, match=r"mlp.linear_fc1.weight"):
        prove_exact(with_pieces(plan, replaced(index, origin=origin.moved(-1, 0))))


def test_another_part_of_the_stage_is_found(plan: ReshardPlan) -> None:
    index = index_of(plan, "self_attn.o_proj.weight")
    part = plan.patterns[KEY].pieces[index].part
    with pytest.raises(WeightSyncError, match=r"self_attention.linear_proj.weight"):
        prove_exact(with_pieces(plan, replaced(index, part=Part("tensor", 1 - part.number))))


def test_a_source_parameter_that_does_not_exist_is_found(plan: ReshardPlan) -> None:
    with pytest.raises(WeightSyncError, match="there is no such parameter"):
        prove_exact(with_pieces(plan, replaced(0, source="no.such.weight")))


def test_a_region_outside_the_parameter_is_found(plan: ReshardPlan) -> None:
    index = index_of(plan, "input_layernorm.weight")
    piece = plan.patterns[KEY].pieces[index]
    with pytest.raises(WeightSyncError, match=r"input_layernorm.weight"):
        prove_exact(with_pieces(plan, replaced(index, region=piece.region.moved(1, 0))))


def test_sizes_that_differ_are_found(plan: ReshardPlan) -> None:
    with pytest.raises(WeightSyncError, match="sizes have to be equal"):
        prove_exact(with_pieces(plan, replaced(0, origin=Region(0, 0, 1, 1))))


def test_padding_over_weights_is_found(plan: ReshardPlan) -> None:
    key = (BlockKind.EMBEDDING, 1)
    (shard,) = plan.patterns[key].targets
    targets = (dataclasses.replace(shard, padding=(Region(0, 0, 1, 3),)),)
    patterns = plan.patterns | {key: Pattern(targets, plan.patterns[key].pieces)}
    with pytest.raises(WeightSyncError, match="these are not its parameters"):
        prove_exact(dataclasses.replace(plan, patterns=patterns))


def test_a_source_of_another_stage_is_found(plan: ReshardPlan) -> None:
    (gpu, supply), source = next(iter(plan.sources.items()))
    sources = plan.sources | {(gpu, supply): (source + 2) % 4}
    with pytest.raises(WeightSyncError, match="that rank is not of the stage"):
        prove_exact(dataclasses.replace(plan, sources=sources))


def test_a_source_with_another_part_is_found(plan: ReshardPlan) -> None:
    (gpu, supply), source = next(item for item in plan.sources.items() if item[0][1].part.cut == "tensor")
    sources = plan.sources | {(gpu, supply): source ^ 1}
    with pytest.raises(WeightSyncError, match="that rank holds another part"):
        prove_exact(dataclasses.replace(plan, sources=sources))


def test_a_layer_that_is_left_out_is_found(plan: ReshardPlan) -> None:
    blocks = tuple(block for block in plan.blocks if block.prefix != "model.layers.1.")
    with pytest.raises(WeightSyncError, match=r"model.layers.1.*they have to be both"):
        prove_exact(dataclasses.replace(plan, blocks=blocks))


def test_the_embedding_that_is_left_out_is_found(plan: ReshardPlan) -> None:
    with pytest.raises(WeightSyncError, match="embedding"):
        prove_exact(dataclasses.replace(plan, blocks=plan.blocks[1:]))


def test_two_layers_from_one_place_are_found(plan: ReshardPlan) -> None:
    first, second = (block for block in plan.blocks if block.kind is BlockKind.DENSE_LAYER)
    twice = dataclasses.replace(second, homes=first.homes)
    blocks = tuple(twice if block == second else block for block in plan.blocks)
    with pytest.raises(WeightSyncError, match="places of layers in the trainer"):
        prove_exact(dataclasses.replace(plan, blocks=blocks))


def test_a_gpu_with_two_engine_ranks_is_found(plan: ReshardPlan) -> None:
    with pytest.raises(WeightSyncError, match="each has to have 4 of the 4 GPUs to itself"):
        prove_exact(dataclasses.replace(plan, engines=((0, 1, 2, 2),)))


@pytest.mark.parametrize(
    ("regions", "overlap"),
    [
        ([Region(0, 0, 2, 2), Region(0, 2, 2, 2), Region(2, 0, 1, 4)], False),
        ([Region(0, 0, 2, 2), Region(1, 1, 2, 2)], True),
        ([Region(0, 0, 9, 1), Region(3, 1, 1, 1), Region(8, 0, 1, 1)], True),
        ([], False),
    ],
)
def test_overlaps_are_found_without_looking_at_elements(regions: list[Region], overlap: bool) -> None:
    assert (find_overlap(regions) is not None) == overlap
