"""SGLang's own weight loaders put into the parameters of each rank what a plan puts there.

Real SGLang model classes, real `load_weights`, weights that are numbers, one per element: names, shapes and every
element of every rank. The trainer's side is the unit tests' oracle of Megatron; tests/dist_cpu/test_reshard.py has the
real one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hybridflow.rollout.cpu import cpu_environment
from hybridflow.weights.reshard.planner import plan_reshard
from hybridflow.weights.reshard.rollout_layout import RolloutLayout
from megatron_ext.hf.config import read_hf_config
from megatron_ext.parallel.layout import Layout
from tests.stack_cpu.command import ROOT
from tests.unit.weights.reshard.apply import fill_engine
from tests.unit.weights.reshard.oracles import cut_megatron, cut_sglang, full_tensors

pytestmark = [pytest.mark.stack_cpu, pytest.mark.timeout(300)]

SHAPE = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "torch_dtype": "float32",
}
QWEN2 = SHAPE | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "head_dim": 8}
QWEN3 = SHAPE | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
LLAMA = SHAPE | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "head_dim": 8}
THREE_HEADS = {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48}
MOE = SHAPE | {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
}


@dataclass(frozen=True)
class Case:
    config: dict[str, Any]
    tied: bool
    train: Layout
    rollout: RolloutLayout


CASES = {
    "qwen2-tp4": Case(QWEN2, False, Layout(tp=2, pp=2), RolloutLayout(tp=4)),
    "qwen3-tied-tp2": Case(QWEN3, True, Layout(tp=2), RolloutLayout(tp=2)),
    "llama-tied-tp3": Case(LLAMA | THREE_HEADS, True, Layout(tp=3, pp=2), RolloutLayout(tp=3)),
    "llama-tp1": Case(LLAMA, False, Layout(dp=2), RolloutLayout(tp=1)),
    "moe-tp4-ep2": Case(MOE, False, Layout(dp=4, ep=4), RolloutLayout(tp=4, ep=2)),
    "moe-tied-tp2": Case(MOE, True, Layout(tp=2, pp=2, sequence_parallel=True, ep=2), RolloutLayout(tp=2)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder per case, with the parameters of every rank. One process for all: importing SGLang takes longest."""
    root = tmp_path_factory.mktemp("shards")
    for name, case in CASES.items():
        write_case(case, root / name)
    result = subprocess.run(
        [sys.executable, "-m", "tests.stack_cpu.sglang_shards", *(str(root / name) for name in CASES)],
        cwd=ROOT,
        env=os.environ | cpu_environment(num_threads=1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return {name: root / name for name in CASES}


def write_case(case: Case, folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(case.config | {"tie_word_embeddings": case.tied}))
    (folder / "rollout.json").write_text(json.dumps({"tp": case.rollout.tp, "ep": case.rollout.ep}))
    hf_config = read_hf_config(folder)
    saved = {name: torch.from_numpy(tensor).float() for name, tensor in full_tensors(hf_config).items()}
    if case.tied and hf_config.moe is not None:
        # SGLang's Qwen3-MoE has an output layer of its own, which only a checkpoint that repeats the embedding fills.
        saved["lm_head.weight"] = saved["model.embed_tokens.weight"].clone()
    save_file(saved, folder / "model.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_real_loaders_and_the_plan_fill_every_parameter_alike(name: str, folders: dict[str, Path]) -> None:
    case, hf_config = CASES[name], read_hf_config(folders[name])
    train, rollout = case.train, case.rollout
    tensors = full_tensors(hf_config)
    trainer = [cut_megatron(hf_config, train, tensors, rank) for rank in range(train.world_size)]
    plan = plan_reshard(hf_config, train, rollout, gpus_per_node=8)
    for gpu in range(plan.world_size):
        rank = plan.tp_rank_of[gpu]
        planned, oracle = fill_engine(plan, gpu, trainer), cut_sglang(hf_config, rollout.tp, rollout.ep, tensors, rank)
        with np.load(folders[name] / f"rank-{rank}.npz") as loaded:
            assert set(loaded) == planned.keys() == oracle.keys()
            for parameter in loaded:
                value = loaded[parameter]
                np.testing.assert_array_equal(planned[parameter], value, err_msg=f"plan, rank {rank} {parameter}")
                np.testing.assert_array_equal(oracle[parameter], value, err_msg=f"oracle, rank {rank} {parameter}")
