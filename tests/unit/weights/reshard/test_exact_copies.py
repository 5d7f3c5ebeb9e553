"""The plan, applied to integer-coded weights, gives every SGLang rank what its own weight loaders would give it.

For 520 random (model, training layout, rollout layout) triples: the model's tensors, with a number per element, are cut
for each Megatron rank (oracles.py), every copy of the plan is done with numpy, and the result is compared with SGLang's
shards. Each destination element counts how often it is written. Sources are checked too: what a GPU takes from
elsewhere is not on it, and what comes over the network is not in its node.

It cannot catch a mistake that the oracles share with the planner: tests/dist_cpu and tests/stack_cpu compare with the
parameters of real Megatron-Core and real SGLang.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hybridflow.weights.reshard.placement import Link
from hybridflow.weights.reshard.plan import Copy, ReshardPlan
from hybridflow.weights.reshard.planner import plan_reshard
from hybridflow.weights.reshard.report import compute_traffic
from hybridflow.weights.reshard.schedule import build_schedule
from tests.unit.weights.reshard.apply import Trainer, parameters_of, view
from tests.unit.weights.reshard.oracles import UNWRITTEN, Array, cut_megatron, cut_sglang, full_tensors
from tests.unit.weights.reshard.triples import Triple, make_triples

TRIPLES_PER_TEST = 40
SEEDS = range(13)


def plan_of(triple: Triple) -> ReshardPlan:
    return plan_reshard(triple.config, triple.train, triple.rollout, gpus_per_node=triple.gpus_per_node)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_element_is_written_once_from_the_right_source(seed: int) -> None:
    for triple in make_triples(seed, TRIPLES_PER_TEST):
        plan = plan_of(triple)
        hf = full_tensors(triple.config)
        ranks = range(triple.train.world_size)
        trainer = [cut_megatron(triple.config, triple.train, hf, rank) for rank in ranks]
        on_gpu = [set().union(*(array.ravel().tolist() for array in shard.values())) for shard in trainer]
        for gpu in ranks:
            check_gpu(gpu, triple, plan, hf, trainer, on_gpu)


def check_gpu(
    gpu: int,
    triple: Triple,
    plan: ReshardPlan,
    hf: dict[str, Array],
    trainer: Trainer,
    on_gpu: list[set[int]],
) -> None:
    engine = {name: np.full(shape, UNWRITTEN) for name, shape in parameters_of(plan, gpu)}
    times = {name: np.zeros(shape, int) for name, shape in parameters_of(plan, gpu)}
    for copy in plan.copies_to(gpu):
        moved = view(trainer[copy.source][copy.chunk, copy.tensor], copy.origin)
        view(engine[copy.parameter], copy.region)[:] = moved
        view(times[copy.parameter], copy.region)[:] += 1
        check_is_nearest(copy, int(moved[0, 0]), triple.gpus_per_node, on_gpu, triple)
    for name, region in plan.padding_of(gpu):
        view(engine[name], region)[:] = 0
        view(times[name], region)[:] += 1
    expected = cut_sglang(triple.config, triple.rollout.tp, triple.rollout.ep, hf, plan.tp_rank_of[gpu])
    assert engine.keys() == expected.keys()
    for name, value in expected.items():
        assert (times[name] == 1).all(), (triple, gpu, name)
        assert np.array_equal(engine[name], value), (triple, gpu, name)


def check_is_nearest(copy: Copy, element: int, gpus_per_node: int, on_gpu: list[set[int]], triple: Triple) -> None:
    node = copy.destination // gpus_per_node
    if copy.source != copy.destination:
        assert element not in on_gpu[copy.destination], (triple, copy)
    if copy.source // gpus_per_node != node:
        neighbours = on_gpu[node * gpus_per_node : (node + 1) * gpus_per_node]
        assert not any(element in held for held in neighbours), (triple, copy)


def test_the_triples_cover_what_makes_a_plan_hard() -> None:
    triples = [triple for seed in SEEDS for triple in make_triples(seed, TRIPLES_PER_TEST)]
    counts: Counter[str] = Counter()
    for triple in triples:
        config, train, rollout = triple.config, triple.train, triple.rollout
        counts[config.model_type] += 1
        counts["replicated key-value heads"] += rollout.tp > config.num_kv_heads
        counts["tied, several stages"] += config.tied_embeddings and train.pp > 1
        counts["virtual pipeline"] += train.vpp > 1
        counts["replicas"] += train.cp * train.dp > 1
        counts["wider engines"] += rollout.tp > train.tp
        counts["narrower engines"] += rollout.tp < train.tp
        counts["slices not nested"] += rollout.tp % train.tp != 0 and train.tp % rollout.tp != 0
        counts["experts spread again"] += config.moe is not None and train.ep != rollout.ep
        counts["experts cut in training"] += train.etp > 1
        counts["experts cut in rollout"] += config.moe is not None and rollout.tp > rollout.ep
        counts["several nodes"] += train.world_size > triple.gpus_per_node
    assert len(triples) == 520
    assert {what for what, count in counts.items() if count < 30} == set(), counts


@pytest.mark.parametrize("seed", [100, 101])
def test_rounds_hold_every_copy_once_and_traffic_counts_them(seed: int) -> None:
    for triple in make_triples(seed, 20):
        plan = plan_of(triple)
        schedule = build_schedule(plan, element_bytes=2, bucket_bytes=600)
        for traffic in compute_traffic(plan, schedule):
            gpu, numbers = traffic.rank, range(len(schedule.rounds))
            copies = [
                copy for number in numbers for message in schedule.incoming(number, gpu) for copy in message.copies
            ]
            assert Counter(copies) == Counter(plan.copies_to(gpu))
            paddings = [padding for number in numbers for padding in schedule.padding(number, gpu)]
            assert Counter(paddings) == Counter(plan.padding_of(gpu))
            parameters = [parameter for number in numbers for parameter in schedule.parameters(number, gpu)]
            assert Counter(parameters) == Counter(parameters_of(plan, gpu))
            by_link = Counter[Link]()
            for copy in copies:
                by_link[plan.link(copy.source, gpu)] += copy.region.size * 2
            expected = [by_link[link] for link in (Link.DEVICE, Link.NVLINK, Link.NETWORK)]
            assert [traffic.device_bytes, traffic.nvlink_bytes, traffic.network_bytes] == expected
