"""Rounds: bounded, of whole parameters, and both ends of a message agree on it."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest

from hybridflow.weights.reshard.placement import Link
from hybridflow.weights.reshard.plan import ReshardPlan
from hybridflow.weights.reshard.planner import plan_reshard
from hybridflow.weights.reshard.regions import Region
from hybridflow.weights.reshard.rollout_layout import RolloutLayout
from hybridflow.weights.reshard.schedule import Schedule, build_schedule
from megatron_ext.parallel.layout import Layout
from tests.unit.weights.reshard.apply import Trainer, parameters_of
from tests.unit.weights.reshard.oracles import cut_megatron, full_tensors
from tests.unit.weights.reshard.test_plan import TINY, TINY_MOE

BUCKET_BYTES = 200
FOUR_LAYERS = dataclasses.replace(TINY, num_layers=4)


@pytest.fixture(
    params=[
        (FOUR_LAYERS, Layout(tp=2, pp=2, dp=2), RolloutLayout(tp=4), 2),
        (FOUR_LAYERS, Layout(tp=2, pp=4), RolloutLayout(tp=1), 2),
        (TINY_MOE, Layout(tp=2, dp=2, ep=2, sequence_parallel=True), RolloutLayout(tp=4, ep=2), 1),
    ],
    ids=["wider", "narrower", "experts"],
)
def plan(request: pytest.FixtureRequest) -> ReshardPlan:
    config, train, rollout, gpus_per_node = request.param
    return plan_reshard(config, train, rollout, gpus_per_node=gpus_per_node)


@pytest.fixture
def schedule(plan: ReshardPlan) -> Schedule:
    return build_schedule(plan, element_bytes=2, bucket_bytes=BUCKET_BYTES)


@pytest.fixture
def trainer(plan: ReshardPlan) -> Trainer:
    hf = full_tensors(plan.hf_config)
    return [cut_megatron(plan.hf_config, plan.train, hf, rank) for rank in range(plan.world_size)]


def expected_buffer(schedule: Schedule, number: int, rank: int, trainer: Trainer) -> int:
    """Parameters handed over; rectangles with gaps that are sent over the network, each once; those received so."""
    shapes = dict(parameters_of(schedule.plan, rank))
    elements = sum(math.prod(shape) for _, shape in schedule.parameters(number, rank))
    sent = {
        (copy.tensor, copy.chunk, copy.origin)
        for message in schedule.outgoing(number, rank)
        for copy in message.copies
        if message.link is Link.NETWORK and has_gaps(copy.origin, trainer[rank][copy.chunk, copy.tensor].shape)
    }
    elements += sum(origin.size for _, _, origin in sent)
    for message in schedule.incoming(number, rank):
        for copy in message.copies:
            if message.link is Link.NETWORK and has_gaps(copy.region, shapes[copy.parameter]):
                elements += copy.region.size
    return elements * 2


def has_gaps(region: Region, shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and region.cols < shape[-1] and region.rows > 1


def test_a_rounds_buffer_is_what_it_hands_over_packs_and_unpacks(schedule: Schedule, trainer: Trainer) -> None:
    for number, round_ in enumerate(schedule.rounds):
        for rank in range(schedule.plan.world_size):
            assert round_.buffer_bytes[rank] == expected_buffer(schedule, number, rank, trainer), (number, rank)


def test_no_buffer_is_above_the_bucket_unless_one_parameter_is(schedule: Schedule) -> None:
    above = [round_ for round_ in schedule.rounds if max(round_.buffer_bytes) > BUCKET_BYTES]
    assert all(len(round_.units) == 1 for round_ in above)
    assert len(above) < len(schedule.rounds)


def test_the_high_water_mark_is_that_of_two_rounds(schedule: Schedule) -> None:
    for rank in range(schedule.plan.world_size):
        sizes = [round_.buffer_bytes[rank] for round_ in schedule.rounds]
        assert schedule.buffer_bytes(rank) == max(a + b for a, b in itertools.pairwise(sizes))


def test_one_round_is_its_own_high_water_mark(plan: ReshardPlan) -> None:
    schedule = build_schedule(plan, element_bytes=2, bucket_bytes=2**30)
    assert len(schedule.rounds) == 1
    assert schedule.buffer_bytes(0) == schedule.rounds[0].buffer_bytes[0]


def test_what_is_sent_is_what_is_received(schedule: Schedule) -> None:
    world = range(schedule.plan.world_size)
    for number in range(len(schedule.rounds)):
        sent = [message for rank in world for message in schedule.outgoing(number, rank)]
        received = [message for rank in world for message in schedule.incoming(number, rank)]
        assert sorted(sent) == sorted(received)
        for rank in world:
            destinations = [message.destination for message in schedule.outgoing(number, rank)]
            sources = [message.source for message in schedule.incoming(number, rank)]
            assert destinations == sorted(set(destinations))
            assert sources == sorted(set(sources))


def test_a_parameter_is_in_one_round_whole(schedule: Schedule) -> None:
    rounds: dict[str, set[int]] = {}
    for number in range(len(schedule.rounds)):
        for message in schedule.incoming(number, 0):
            for copy in message.copies:
                rounds.setdefault(copy.parameter, set()).add(number)
    assert rounds.keys() == {name for name, _ in parameters_of(schedule.plan, 0)}
    assert all(len(numbers) == 1 for numbers in rounds.values())


def test_stages_take_turns() -> None:
    plan = plan_reshard(FOUR_LAYERS, Layout(pp=2), RolloutLayout(), gpus_per_node=2)
    schedule = build_schedule(plan, element_bytes=2, bucket_bytes=1)
    blocks = [unit.block.prefix or unit.block.kind for round_ in schedule.rounds for unit in round_.units]
    order = list(dict.fromkeys(blocks))
    layers = [f"model.layers.{layer}." for layer in (0, 2, 1, 3)]
    assert order == ["embedding", *layers, "norm", "head"]
