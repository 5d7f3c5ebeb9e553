"""Round trips: changed weights of Megatron ranks into real SGLang, shard by shard, and greedy text as transformers.

Three engines (dense TP1, dense TP2, mixture of experts TP1) and three train layouts (TP2 PP2, DP2, EP2) run side by
side. The weights are changed after loading and differ from what the engines started with; the reference is
`transformers` on what the trainer exports. Each engine reads all of its parameters back after each update.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hybridflow.errors import RolloutError, WeightSyncError
from hybridflow.loop.batch import build_train_sequences, check_experts
from hybridflow.policy.init import write_policy
from hybridflow.types import (
    Completion,
    Group,
    GroupRequest,
    Lease,
    Packed,
    Partial,
    SamplingParams,
    TokenColumns,
    TrainBatch,
    TrainSequence,
    VersionRun,
)
from hybridflow.weights.broadcast import Broadcast, BroadcastGroup
from hybridflow.weights.manifest import Bucket, describe_tensor
from megatron_ext.parallel.layout import Layout
from tests.builders import build_prompt, build_request, build_scored
from tests.ports import free_port
from tests.stack_cpu.command import ROOT
from tests.stack_cpu.exact_processes import Served, Trainer, start_engine
from tests.stack_cpu.moe_model import write_moe

pytestmark = [pytest.mark.stack_cpu, pytest.mark.timeout(600)]

BUCKET_BYTES = 192 * 2**10
PROMPTS = [[5 + (7 * number + 3 * place) % 200 for place in range(20 + 9 * number)] for number in range(5)]
NEW_TOKENS = 24


class Stack(NamedTuple):
    trainers: dict[str, Trainer]
    engines: dict[str, Served]
    folder: Path


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("exact")
    dense, moe = folder / "dense", folder / "moe"
    write_policy(ROOT / "configs/models/tiny", dense, seed=0)
    write_moe(dense, moe)
    with ExitStack() as stack:
        engines = {
            "TP1": start_engine(dense, 1),
            "TP2": start_engine(dense, 2),
            "moe": start_engine(moe, 1, tells_experts=True),
        }
        trainers = {
            "TP2 PP2": Trainer(Layout(tp=2, pp=2), dense),
            "DP2": Trainer(Layout(dp=2), dense),
            "EP2": Trainer(Layout(ep=2, dp=2), moe),
        }
        processes = [*engines.values(), *trainers.values()]
        for process in processes:
            stack.callback(process.close)
        for process in processes:
            stack.callback(process.begin_closing)  # first of all, so that they end side by side
        yield Stack(trainers, engines, folder)


@pytest.mark.parametrize(
    ("layout", "engine", "tp", "version"),
    [("TP2 PP2", "TP1", 1, 1), ("TP2 PP2", "TP2", 2, 2), ("DP2", "TP2", 2, 3), ("EP2", "moe", 1, 4)],
)
def test_greedy_text_equals_hf_on_the_changed_weights(
    stack: Stack, layout: str, engine: str, tp: int, version: int
) -> None:
    trainer, target = stack.trainers[layout], stack.engines[engine]
    exported = stack.folder / f"v{version}"
    trainer.call("change", 0.2 * version, exported)
    num_rounds = trainer.open(tp, BUCKET_BYTES)
    assert num_rounds > 1
    confirmed, entries = update(trainer, target, tp, num_rounds, version)
    assert confirmed == version
    assert len(entries) == len(set(entries)) > 10 * tp
    expected = hf_greedy(exported)
    assert target.call("greedy", PROMPTS, NEW_TOKENS) == expected
    assert expected != hf_greedy(stack.folder / ("moe" if engine == "moe" else "dense")), "nothing was changed"


def update(trainer: Trainer, engine: Served, tp: int, num_rounds: int, version: int) -> tuple[int, list]:
    """Round k + 1 is assembled while the engine loads round k."""
    engine.call("begin_weights", version)
    round_ = trainer.assemble(tp, 0, version)
    for number in range(num_rounds):
        engine.ask("load_bucket", round_)
        if number + 1 < num_rounds:
            round_ = trainer.assemble(tp, number + 1, version)
        engine.answer()
    return engine.call("end_weights")


def test_the_experts_that_the_engine_chose_are_replayed(stack: Stack) -> None:
    """At every token and layer: of a prompt from the cache, of completions, and of one that another step had begun."""
    trainer, engine, exported = stack.trainers["EP2"], stack.engines["moe"], stack.folder / "v13"
    trainer.call("change", 0.3, exported)
    update(trainer, engine, 1, trainer.open(1, BUCKET_BYTES), 13)
    groups = [build_request(build_prompt(token_ids=tokens), 4, group_id=f"g{n}") for n, tokens in enumerate(PROMPTS)]
    begun = Partial(
        index=0, tokens=TokenColumns(ids=[9, 8], rollout_logprobs=[-1.0, -1.0]), versions=[VersionRun(12, 2)]
    )
    groups[1] = msgspec.structs.replace(groups[1], partials=[msgspec.structs.replace(begun, temperature=1.0)])
    leases = [Lease(request=group, attempt=1, indices=[0, 1, 2, 3]) for group in groups[:-1]]
    leases.append(Lease(request=groups[-1], attempt=1, indices=[2]))
    sampling = SamplingParams(temperature=1.0, max_new_tokens=NEW_TOKENS, returns_experts=True)
    completions = engine.call("draw", leases, sampling)
    assert sum(c.cached_tokens for c in completions) > 3 * sum(len(tokens) - 1 for tokens in PROMPTS[:-1]) * 0.9
    assert [len(c.prompt_experts) > 0 for c in completions].count(True) == len(groups), "one of a group tells"

    rows = [row for group in groups for row in rows_of(group, completions)]
    check_experts(rows)
    plan = [[[[number] for number in range(rank, len(rows), 2)] for rank in range(2)]]
    bare = [
        msgspec.structs.replace(row, response=without_experts(row.response), prompt_experts=Packed()) for row in rows
    ]
    replayed, free = (
        join_ranks(trainer.call("replay", exported, TrainBatch(sequences=some, plan=plan, temperature=1.0)))
        for some in (rows, bare)
    )
    for number, row in enumerate(rows):
        told_TLK = told_experts(row)
        told_TLE = torch.zeros((*told_TLK.shape[:2], 8), dtype=torch.bool).scatter(2, told_TLK, True)
        assert torch.equal(replayed["experts"][number][:-1], told_TLE), "what the engine chose"
        assert torch.equal(hf_experts(exported, row)[:-1], told_TLE), "what the model chooses, by transformers"
        gap = replayed["logprobs"][number] - torch.tensor(row.response.rollout_logprobs)
        assert gap[2 if row.sequence_id == "g1-c00" else 0 :].abs().max() < 1e-4
        torch.testing.assert_close(replayed["logprobs"][number], free["logprobs"][number], rtol=0, atol=1e-5)


def rows_of(request: GroupRequest, completions: list[Completion]) -> list[TrainSequence]:
    """Training rows of a group, of those that were asked for."""
    own = sorted((c for c in completions if c.group_id == request.group_id), key=lambda completion: completion.index)
    group = Group(group_id=request.group_id, prompt=request.prompt, members=[build_scored(one) for one in own])
    return build_train_sequences([group], {request.group_id: [1.0] * len(own)})


def without_experts(tokens: TokenColumns) -> TokenColumns:
    return msgspec.structs.replace(tokens, experts=Packed())


def told_experts(row: TrainSequence) -> torch.Tensor:
    """int64 [T - 1, L, K]."""
    data = row.prompt_experts.data + row.response.experts.data
    return torch.tensor(list(data)).view(-1, *row.response.experts.shape)


def join_ranks(ranks: list[dict[str, dict[int, torch.Tensor]]]) -> dict[str, dict[int, torch.Tensor]]:
    return {name: {number: value for rank in ranks for number, value in rank[name].items()} for name in ranks[0]}


def hf_experts(directory: Path, row: TrainSequence) -> torch.Tensor:
    """bool [T, L, E], which experts the routers of transformers choose."""
    model = load_reference(directory)
    maps: list[torch.Tensor] = []
    handles = [
        layer.mlp.gate.register_forward_hook(lambda gate, args, output: maps.append(output[2]))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(torch.tensor([row.prompt_token_ids + row.response_token_ids]))
    for handle in handles:
        handle.remove()
    chosen_TLK = torch.stack(maps, dim=1)
    return torch.zeros((*chosen_TLK.shape[:2], 8), dtype=torch.bool).scatter(2, chosen_TLK, True)


@functools.cache
def load_reference(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def hf_greedy(directory: Path) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return [
        model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW_TOKENS)[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]


def test_whole_tensors_arrive_over_a_process_group_of_trainer_and_engine_ranks(stack: Stack) -> None:
    """The way to engines on devices of their own; the engine has other weights before."""
    trainer, engine, exported = stack.trainers["DP2"], stack.engines["TP2"], stack.folder / "v5"
    trainer.call("change", 0.1, exported)
    entries = trainer.call("entries")[0]
    group = BroadcastGroup(name="v5", address="127.0.0.1", port=free_port(), world_size=3, backend="gloo")
    engine.call("begin_weights", 5)
    engine.ask("join_group", group, 1)
    engine.ask("load_bucket", Broadcast(version=5, group=group.name, entries=entries))
    trainer.call("broadcast", group, 5)
    engine.answer()
    engine.answer()
    assert engine.call("end_weights") == (5, entries)
    assert engine.call("greedy", PROMPTS, NEW_TOKENS) == hf_greedy(exported)


def test_whole_tensors_are_read_back_where_sglang_keeps_them_as_they_are(stack: Stack) -> None:
    engine, dense, other = stack.engines["TP1"], stack.folder / "dense", stack.folder / "other"
    write_policy(ROOT / "configs/models/tiny", other, seed=1)
    for version, source in ((6, dense), (7, other), (8, dense)):
        tensors = load_file(source / "model.safetensors")
        entries = [describe_tensor(name, tensor) for name, tensor in tensors.items()]
        engine.call("begin_weights", version)
        bucket = Bucket(version=version, source="the test", entries=entries, tensors=list(tensors.values()))
        engine.call("load_bucket", bucket)
        if version < 8:
            assert engine.call("end_weights") == (version, entries)
    engine.call("overwrite", "model.layers.1.mlp.down_proj.weight", torch.zeros(64, 128))
    with pytest.raises(
        WeightSyncError, match=r"8: after the update model\.layers\.1\.mlp\.down_proj\.weight of rank 0"
    ):
        engine.call("end_weights")


def test_a_parameter_that_sglang_holds_otherwise_is_named(stack: Stack) -> None:
    """One tensor is overwritten behind the shards' back, in the same session: reading back finds it."""
    trainer, engine = stack.trainers["DP2"], stack.engines["TP2"]
    num_rounds = trainer.open(2, 2**20)
    engine.call("begin_weights", 9)
    for number in range(num_rounds):
        engine.call("load_bucket", trainer.assemble(2, number, 9))
    foreign = torch.full((64,), 0.5)
    entry = describe_tensor("model.norm.weight", foreign)
    engine.call("load_bucket", Bucket(version=9, source="the test", entries=[entry], tensors=[foreign]))
    with pytest.raises(WeightSyncError, match=r"model\.norm\.weight of rank 0 of the engine, from train worker 0"):
        engine.call("end_weights")
    with pytest.raises(RolloutError, match="no confirmed weights version"):
        engine.call("greedy", PROMPTS, NEW_TOKENS)


def test_payloads_of_train_workers_are_passed_on_and_every_parameter_confirmed_by_its_digest(stack: Stack) -> None:
    """The way over a GPU, with memory of the CPU."""
    trainer, engine = stack.trainers["TP2 PP2"], stack.engines["TP2"]
    exported = stack.folder / "v11"
    trainer.call("change", 0.1, exported)
    num_rounds = trainer.open(2, 2**20)
    engine.call("begin_weights", 11)
    for number in range(num_rounds):
        engine.call("load_as_on_a_gpu", trainer.assemble(2, number, 11), False)
    assert engine.call("end_weights")[0] == 11
    assert engine.call("greedy", PROMPTS, NEW_TOKENS) == hf_greedy(exported)
    engine.call("begin_weights", 12)
    round_ = trainer.assemble(2, 0, 12)
    name = round_.engines[0][0].entries[-1].name
    with pytest.raises(WeightSyncError, match=rf"{name} of rank 0 of the engine.*SGLang's rank has checksum"):
        engine.call("load_as_on_a_gpu", round_, True)


def test_a_bucket_that_changed_on_the_way_is_refused(stack: Stack) -> None:
    from hybridflow.weights.reshard.buffers import map_buffer

    trainer, engine = stack.trainers["EP2"], stack.engines["moe"]
    trainer.open(1, BUCKET_BYTES)
    engine.call("begin_weights", 10)
    round_ = trainer.assemble(1, 0, 10)
    handle = round_.engines[0][0].handle
    assert handle is not None
    map_buffer(handle)[0] ^= 1
    with pytest.raises(WeightSyncError, match=r"model\.embed_tokens\.weight of rank 0 of the engine"):
        engine.call("load_bucket", round_)
