"""Tests in one process: agreement with transformers, packing invariance, refusals, a fresh start of the optimizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ext.parallel.layout import Layout
from tests.dist_cpu import rank_programs, transformers_reference
from tests.dist_cpu.launch import run_ranks
from tests.dist_cpu.tiny_models import CLASSES, load_model, make_rows

pytestmark = [pytest.mark.dist_cpu, pytest.mark.timeout(300)]

SFT_MODELS = ("qwen3_tied", "qwen2", "qwen3_moe")


@pytest.fixture(scope="module")
def one(hf_dirs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every single-process program, run in one process."""
    broken = write_broken_models(hf_dirs["qwen3_untied"], tmp_path_factory.mktemp("broken"))
    return run_ranks(Layout(), run_all, hf_dirs, broken)[0]


def run_all(topology: Any, layout: Layout, hf_dirs: dict[str, Path], broken: list[Path]) -> dict[str, Any]:
    return {
        "families": rank_programs.compare_families(topology, layout, hf_dirs),
        "packings": rank_programs.train_packings(topology, layout, hf_dirs["qwen3_tied"]),
        "start_over": rank_programs.start_over(topology, layout, hf_dirs["qwen3_tied"]),
        "sft": rank_programs.train_sft(topology, layout, {name: hf_dirs[name] for name in SFT_MODELS}, steps=2),
        "refusals": rank_programs.load_broken(topology, layout, broken),
    }


def write_broken_models(hf_dir: Path, root: Path) -> list[Path]:
    """One without a tensor, one with a tensor of another shape, one with a rope scaling that is not supported."""
    missing, misshapen, scaled = (shutil.copytree(hf_dir, root / name) for name in ("missing", "misshapen", "scaled"))
    tensors = load_file(hf_dir / "model.safetensors")
    without = {name: tensor for name, tensor in tensors.items() if name != "model.layers.2.mlp.up_proj.weight"}
    save_file(without, missing / "model.safetensors")
    cut = {**tensors, "model.layers.1.self_attn.k_norm.weight": torch.ones(16)}
    save_file(cut, misshapen / "model.safetensors")
    config = json.loads((hf_dir / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    (scaled / "config.json").write_text(json.dumps(config))
    return [missing, misshapen, scaled]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("name", CLASSES)
def test_logprobs_and_entropies_are_those_of_transformers(
    one: dict[str, Any], hf_dirs: dict[str, Path], name: str, temperature: float
) -> None:
    model = load_model(hf_dirs[name])
    expected_logprobs, expected_entropies = [], []
    for batch in rank_programs.pack_rows(make_rows(), 1, Layout()):
        with torch.no_grad():
            logits = model(batch.tokens_T[None]).logits[0, batch.predict_index_N] / temperature
        log_softmax = logits.double().log_softmax(-1)
        expected_logprobs.append(log_softmax.gather(1, batch.targets_N[:, None])[:, 0])
        expected_entropies.append(-(log_softmax.exp() * log_softmax).sum(-1))
    found = one["families"][name][temperature]
    logprobs_N, entropies_N = (torch.cat([output[i] for output in found]).double() for i in (0, 1))
    torch.testing.assert_close(logprobs_N, torch.cat(expected_logprobs), rtol=1e-5, atol=5e-5)
    torch.testing.assert_close(entropies_N, torch.cat(expected_entropies), rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("name", SFT_MODELS)
def test_supervised_steps_are_those_of_transformers(one: dict[str, Any], hf_dirs: dict[str, Path], name: str) -> None:
    """Two AdamW steps on the mean over sequences of their mean negative log-likelihood."""
    losses, norms, weights = transformers_reference.train(
        hf_dirs[name], transformers_reference.sequence_mean, rank_programs.OPTIONS, steps=2, temperature=1.0
    )
    found = one["sft"][name]
    assert [step.loss for step in found["steps"]] == pytest.approx(losses, rel=1e-5)
    assert [step.grad_norm for step in found["steps"]] == pytest.approx(norms, rel=1e-5)
    for weight, tensor in found["weights"].items():
        if weight in weights:
            assert (tensor - weights[weight]).norm() < 1e-5 * tensor.norm(), weight


@pytest.mark.parametrize("name", CLASSES)
def test_export_gives_the_bits_that_were_loaded(one: dict[str, Any], name: str) -> None:
    assert one["families"][name]["changed_by_loading"] == []


def test_packing_order_and_micro_batch_size_do_not_matter(one: dict[str, Any]) -> None:
    first, *others = one["packings"]
    for other in others:
        for step, expected in zip(other["steps"], first["steps"], strict=True):
            assert step.loss == pytest.approx(expected.loss, rel=1e-5)
            assert step.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
            assert step.num_tokens == expected.num_tokens
        for name, tensor in first["weights"].items():
            assert (other["weights"][name] - tensor).norm() < 1e-5 * tensor.norm(), name


def test_a_reset_optimizer_is_a_fresh_one(one: dict[str, Any]) -> None:
    result = one["start_over"]
    assert result["steps"][0] == result["steps"][1]
    assert rank_programs.equal_bits(*result["states"])


def test_refusals_name_what_is_wrong(one: dict[str, Any]) -> None:
    missing, misshapen, scaled = one["refusals"]
    assert missing.startswith("WeightsError: model.layers.2.mlp.up_proj.weight is not in")
    assert "model.layers.1.self_attn.k_norm.weight" in misshapen
    assert "[16]" in misshapen and "[32]" in misshapen
    assert scaled.startswith("UnsupportedModelError: rope_type = 'dynamic'")
