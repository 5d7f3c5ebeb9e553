"""A model is written back as it came: dtype, an output projection of its own; and families change layout mid-way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ext.parallel.layout import Layout
from megatron_ext.parallel.topology import Topology
from megatron_ext.policy import MegatronPolicy
from tests.dist_cpu import checkpoint_programs, rank_programs
from tests.dist_cpu.config_dialects import with_own_head
from tests.dist_cpu.launch import run_ranks
from tests.dist_cpu.tiny_models import load_model

pytestmark = [pytest.mark.dist_cpu, pytest.mark.timeout(300)]

WRITTEN = {"as_it_came": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


def in_bfloat16(hf_dir: Path, out_dir: Path) -> Path:
    shutil.copytree(hf_dir, out_dir)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(hf_dir / "model.safetensors").items()}
    save_file(tensors, out_dir / "model.safetensors", {"format": "pt"})
    config = json.loads((out_dir / "config.json").read_text())
    (out_dir / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return out_dir


def write_all(topology: Topology, layout: Layout, bf16: Path, own_head: Path, out_dir: Path) -> dict[str, Any]:
    """Two models, trained a step in float32, written and saved; the second's checkpoint opened alone."""
    policy = rank_programs.open_policy(bf16, layout, topology)
    rank_programs.train(policy, rank_programs.rank_batches(topology, layout), 1)
    for name, dtype in WRITTEN.items():
        policy.save_hf(out_dir / name, dtype)
    policy.save_checkpoint(out_dir / "bf16_checkpoint")
    trained = rank_programs.exported(policy)

    policy = rank_programs.open_policy(own_head, layout, topology)
    rank_programs.train(policy, rank_programs.rank_batches(topology, layout), 1)
    policy.save_hf(out_dir / "own_head")
    policy.save_checkpoint(out_dir / "own_head_checkpoint")
    for name in ("bf16", "own_head"):
        folder = out_dir / f"{name}_checkpoint"
        opened = MegatronPolicy(
            str(folder / "hf"), layout, topology, dtype=torch.float32, optimizer=None, load_weights=False
        )
        opened.load_checkpoint(folder)
        opened.save_hf(out_dir / f"{name}_opened")
    return {"bf16": trained, "own_head": rank_programs.exported(policy)}


def test_dtype_and_output_projection_come_back(hf_dirs: dict[str, Path], tmp_path: Path) -> None:
    bf16 = in_bfloat16(hf_dirs["qwen3_untied"], tmp_path / "bf16")
    own_head = with_own_head(hf_dirs["qwen3_tied"], tmp_path / "own")
    trained = run_ranks(Layout(), write_all, bf16, own_head, tmp_path)[0]

    expected = {"as_it_came": "bfloat16", "float32": "float32", "bfloat16": "bfloat16", "bf16_opened": "bfloat16"}
    for name, dtype in expected.items():
        tensors = load_file(tmp_path / name / "model.safetensors")
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == dtype, name
        for key, tensor in trained["bf16"].items():
            assert torch.equal(tensors[key], tensor.to(getattr(torch, dtype))), (name, key)

    for name in ("own_head", "own_head_opened"):
        tensors = load_file(tmp_path / name / "model.safetensors")
        assert tensors.keys() == trained["own_head"].keys() and "lm_head.weight" in tensors
        assert torch.equal(tensors["lm_head.weight"], trained["own_head"]["lm_head.weight"])
        assert json.loads((tmp_path / name / "config.json").read_text())["tie_word_embeddings"] is False
        assert torch.equal(load_model(tmp_path / name).lm_head.weight, tensors["lm_head.weight"])


RELAID = {
    "qwen3_untied": Layout(pp=2, dp=2),
    "qwen2": Layout(tp=2, dp=2),
    "llama": Layout(tp=2, pp=2),
    "llama_tied": Layout(cp=2, pp=2),
    "qwen3_moe": Layout(dp=2, ep=2),
}


@pytest.mark.full
@pytest.mark.parametrize("name", RELAID)
def test_a_family_that_changes_layout_in_mid_training_goes_on_as_one_process(
    hf_dirs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    alone = run_ranks(Layout(), checkpoint_programs.save_both_ways, hf_dirs[name], tmp_path)[0]
    resumed = run_ranks(RELAID[name], checkpoint_programs.go_on, hf_dirs[name], [tmp_path / "foreground"])
    for (found,) in resumed:
        for step, expected in zip(found["steps"], alone["steps"], strict=True):
            assert step.loss == pytest.approx(expected.loss, rel=1e-5)
            assert step.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
