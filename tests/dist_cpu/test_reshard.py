"""A plan, applied to the parameters of real Megatron-Core ranks, gives SGLang's shards.

The weights are numbers, one per element, written as a Hugging Face checkpoint and loaded by every rank. So names,
chunks, shapes and cuts of the real model are held against the planner's description of them, and against the unit
tests' oracle of Megatron.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hybridflow.weights.reshard.planner import plan_reshard
from hybridflow.weights.reshard.rollout_layout import RolloutLayout
from megatron_ext.hf.config import read_hf_config
from megatron_ext.parallel.layout import Layout
from tests.dist_cpu.launch import run_ranks
from tests.dist_cpu.reshard_programs import loaded_parameters
from tests.unit.weights.reshard.apply import fill_engine
from tests.unit.weights.reshard.oracles import GARBAGE, cut_megatron, cut_sglang, full_tensors

pytestmark = pytest.mark.dist_cpu

LARGEST_EXACT = 2**24
"""Above this not every whole number is a float32."""


@pytest.mark.parametrize(
    ("name", "train", "rollouts"),
    [
        ("qwen2", Layout(tp=2, pp=2), [RolloutLayout(tp=1), RolloutLayout(tp=4)]),
        ("qwen3_tied", Layout(pp=2, vpp=2), [RolloutLayout(tp=2)]),
        ("llama_tied", Layout(tp=2, dp=2), [RolloutLayout(tp=4)]),
        ("qwen3_moe", Layout(tp=2, sequence_parallel=True, ep=2), [RolloutLayout(tp=1), RolloutLayout(tp=2, ep=2)]),
        ("qwen3_moe", Layout(dp=4, ep=2, etp=2), [RolloutLayout(tp=4, ep=2), RolloutLayout(tp=2)]),
    ],
    ids=["tp2-pp2", "pp2-vpp2-tied", "tp2-dp2-tied", "experts-ep2", "experts-ep2-etp2"],
)
def test_real_megatron_parameters_become_sglang_shards(
    name: str, train: Layout, rollouts: list[RolloutLayout], hf_dirs: dict[str, Path], tmp_path: Path
) -> None:
    config = read_hf_config(hf_dirs[name])
    tensors = full_tensors(config)
    assert max(int(tensor.max()) for tensor in tensors.values()) < LARGEST_EXACT
    shutil.copy(hf_dirs[name] / "config.json", tmp_path)
    floats = {tensor: torch.from_numpy(value).float().contiguous() for tensor, value in tensors.items()}
    save_file(floats, tmp_path / "model.safetensors")
    trainer = run_ranks(train, loaded_parameters, tmp_path)

    for rank, parameters in enumerate(trainer):
        expected = cut_megatron(config, train, tensors, rank)
        assert parameters.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(
                parameters[key], np.where(value == GARBAGE, 0, value), err_msg=f"{rank} {key}"
            )
    for rollout in rollouts:
        plan = plan_reshard(config, train, rollout, gpus_per_node=2)
        for gpu in range(plan.world_size):
            expected = cut_sglang(config, rollout.tp, rollout.ep, tensors, plan.tp_rank_of[gpu])
            engine = fill_engine(plan, gpu, trainer)
            assert engine.keys() == expected.keys()
            for parameter, value in expected.items():
                np.testing.assert_array_equal(engine[parameter], value, err_msg=f"{rollout} GPU {gpu} {parameter}")
