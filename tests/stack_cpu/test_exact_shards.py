"""Round trips: changed weights of Megatron ranks into real SGLang, shard by shard, and greedy text as transformers.

Three engines (dense TP1, dense TP2, mixture of experts TP1) and three train layouts (TP2 PP2, DP2, EP2) run side by
side. The weights are changed after loading and differ from what the engines started with; the reference is
`transformers` on what the trainer exports. Each engine reads all of its parameters back after each update.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

from hybridflow.errors import RolloutError, WeightSyncError
from hybridflow.policy.init import write_policy
from hybridflow.weights.broadcast import Broadcast, BroadcastGroup
from hybridflow.weights.manifest import Bucket, describe_tensor
from megatron_ext.parallel.layout import Layout
from tests.ports import free_port
from tests.stack_cpu.command import ROOT
from tests.stack_cpu.exact_processes import Served, Trainer, start_engine

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
        engines = {"TP1": start_engine(dense, 1), "TP2": start_engine(dense, 2), "moe": start_engine(moe, 1)}
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


def write_moe(dense: Path, out_dir: Path) -> None:
    """A mixture of experts with the tokenizer of the dense model."""
    config = Qwen3MoeConfig(
        vocab_size=1024,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=8,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        max_position_embeddings=1024,
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=3,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(config).float()
    model.generation_config = GenerationConfig.from_model_config(config)
    shutil.copytree(dense, out_dir, ignore=shutil.ignore_patterns("*.safetensors", "*config.json"))
    shutil.copy(dense / "tokenizer_config.json", out_dir)
    model.save_pretrained(out_dir)


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
