"""Mixtures of experts train the same on every layout, export what they loaded, and agree with transformers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_ext.parallel.layout import Layout
from tests.dist_cpu import moe_programs, rank_programs, transformers_reference
from tests.dist_cpu.launch import run_ranks
from tests.dist_cpu.tiny_models import load_model

pytestmark = [pytest.mark.dist_cpu, pytest.mark.timeout(300)]

LAYOUTS = {
    "one": Layout(),
    "ep2": Layout(dp=2, ep=2),
    "dp2": Layout(dp=2),
    "etp2": Layout(dp=2, etp=2),
    "tp2_sp": Layout(tp=2, sequence_parallel=True),
    "tp2_sp_ep2": Layout(tp=2, sequence_parallel=True, ep=2),
    "tp2_sp_etp2": Layout(tp=2, sequence_parallel=True, etp=2),
    "ep4": Layout(dp=4, ep=4),
    "dp4_ep2": Layout(dp=4, ep=2),
    "pp2_ep2": Layout(pp=2, dp=2, ep=2),
    "tp2_sp_dp2_ep2_etp2": Layout(tp=2, sequence_parallel=True, dp=2, ep=2, etp=2),
    "tp2_sp_pp2_ep2": Layout(tp=2, sequence_parallel=True, pp=2, ep=2),
    "cp2_ep2": Layout(cp=2, ep=2),
    "tp2_sp_cp2_ep4": Layout(tp=2, sequence_parallel=True, cp=2, ep=4),
    "pp2_vpp2_ep2": Layout(pp=2, vpp=2, dp=2, ep=2),
    "tp2_sp_ep2_selective": Layout(tp=2, sequence_parallel=True, ep=2, recompute="selective"),
    "ep2_recompute_overlap": Layout(dp=2, ep=2, recompute="full", overlap=True),
}
PARALLEL = [name for name in LAYOUTS if name != "one"]
MODELS = ("qwen3_moe", "qwen3_moe_mixed")

Exercise = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def out_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moe")


@pytest.fixture(scope="module")
def exercise(hf_dirs: dict[str, Path], out_dir: Path) -> Exercise:
    """Results of `moe_programs.exercise` by layout name; each layout is started once."""

    @functools.cache
    def run(name: str) -> list[dict[str, Any]]:
        models = {model: hf_dirs[model] for model in MODELS}
        return run_ranks(LAYOUTS[name], moe_programs.exercise, models, out_dir / name)

    return run


def whole_model(ranks: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Weights of all stages together. Ranks that export the same tensor must agree on its bits."""
    whole: dict[str, torch.Tensor] = {}
    for rank in ranks:
        for name, tensor in rank["weights"].items():
            assert torch.equal(whole.setdefault(name, tensor), tensor), f"ranks disagree on {name}"
    return whole


def assert_same_step(found: Any, expected: Any) -> None:
    """Loss, gradient norm and metrics to 1e-5."""
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    assert found.sums == pytest.approx(expected.sums, rel=1e-5)


def assert_same_weights(ranks: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    """Every weight to 1e-6 absolute."""
    weights = whole_model(ranks)
    assert weights.keys() == expected["weights"].keys()
    for name, tensor in expected["weights"].items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", PARALLEL)
def test_two_steps_equal_one_process(exercise: Exercise, layout: str, model: str) -> None:
    """Data parallel ranks have different numbers of micro-batches, so some wait with nothing to predict."""
    expected = exercise("one")[0][model]
    ranks = [rank[model] for rank in exercise(layout)]
    for rank in ranks:
        for step, expected_step in zip(rank["steps"], expected["steps"], strict=True):
            assert_same_step(step, expected_step)
    assert_same_weights(ranks, expected)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", PARALLEL)
def test_a_supervised_step_equals_one_process(exercise: Exercise, layout: str, model: str) -> None:
    """Its loss is a mean over sequences, whichever ranks hold them or parts of them."""
    expected = exercise("one")[0][model]["sft"]
    ranks = [rank[model]["sft"] for rank in exercise(layout)]
    for rank in ranks:
        assert_same_step(rank["step"], expected["step"])
        assert rank["step"].num_tokens == 8
    assert_same_weights(ranks, expected)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_gives_the_bits_that_were_loaded(exercise: Exercise, layout: str, model: str) -> None:
    assert all(rank[model]["changed_by_loading"] == [] for rank in exercise(layout))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_reference_is_exchanged_in_and_out_to_the_bit(exercise: Exercise, layout: str, model: str) -> None:
    """The first weights, after training: from memory, then saved, read and taken again; no bit of training changes."""
    for rank in exercise(layout):
        exchanged = rank[model]["reference"]
        assert exchanged["unchanged"] == [True] * 4
        for outputs in exchanged["outputs"]:
            assert rank_programs.same_outputs(outputs, rank[model]["logprobs"])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_model_opens_in_transformers(exercise: Exercise, out_dir: Path, layout: str, model: str) -> None:
    weights = whole_model([rank[model] for rank in exercise(layout)])
    on_disk: dict[str, torch.Tensor] = {}
    for path in (out_dir / layout / model).glob("*.safetensors"):
        on_disk.update(load_file(path))
    assert on_disk.keys() == weights.keys()
    assert all(torch.equal(on_disk[name], tensor) for name, tensor in weights.items())
    logits = load_model(out_dir / layout / model)(torch.arange(5)[None]).logits
    assert logits.isfinite().all()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logprobs_are_those_of_transformers(
    exercise: Exercise, hf_dirs: dict[str, Path], layout: str, model: str
) -> None:
    expected_N = torch.cat(transformers_reference.compute_logprobs(hf_dirs[model], rank_programs.TEMPERATURE))
    found = [rank[model]["logprobs"] for rank in exercise(layout)]
    assert any(logprobs is not None for logprobs in found)
    for logprobs in found:
        if logprobs is not None:
            torch.testing.assert_close(torch.cat([output[0] for output in logprobs]), expected_N, rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_one_process_trains_as_transformers_does(exercise: Exercise, hf_dirs: dict[str, Path], model: str) -> None:
    """Loss and gradient norm of the first step, rows one at a time, with torch and transformers alone."""
    step = exercise("one")[0][model]["steps"][0]
    losses, norms, _ = transformers_reference.train(
        hf_dirs[model],
        rank_programs.mean_weighted_loss,
        rank_programs.OPTIONS,
        steps=1,
        temperature=rank_programs.TEMPERATURE,
    )
    assert step.loss == pytest.approx(losses[0], rel=1e-5)
    assert step.grad_norm == pytest.approx(norms[0], rel=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_goes_on_at_other_expert_layouts(hf_dirs: dict[str, Path], tmp_path: Path, model: str) -> None:
    """Bit for bit at its own layout; with the same losses and gradients where experts are cut in other ways."""
    sources = ("ep2", "tp2_sp_etp2")
    saved = {
        name: run_ranks(LAYOUTS[name], moe_programs.save_halfway, hf_dirs[model], tmp_path / name) for name in sources
    }
    for ranks in saved.values():
        assert all(rank["again"] == rank["steps"] and rank["same_state"] for rank in ranks)
    checkpoints = [tmp_path / source for source in sources]
    for rank in run_ranks(LAYOUTS["pp2_ep2"], moe_programs.go_on, hf_dirs[model], checkpoints):
        for source, steps in zip(sources, rank, strict=True):
            expected = saved[source][0]["steps"]
            assert [step.loss for step in steps] == pytest.approx([step.loss for step in expected], rel=1e-5)
            assert [step.grad_norm for step in steps] == pytest.approx([s.grad_norm for s in expected], rel=1e-5)


@pytest.mark.parametrize("layout", ["ep2", "tp2_sp_etp2"])
def test_bfloat16_routes_in_float32(hf_dirs: dict[str, Path], layout: str) -> None:
    one = run_ranks(Layout(), moe_programs.train_bf16, hf_dirs["qwen3_moe"])[0]
    for rank in run_ranks(LAYOUTS[layout], moe_programs.train_bf16, hf_dirs["qwen3_moe"]):
        assert rank["router_dtypes"] == {torch.float32}
        for step, expected in zip(rank["steps"], one["steps"], strict=True):
            assert step.loss == pytest.approx(expected.loss, rel=0.02)
            assert step.grad_norm == pytest.approx(expected.grad_norm, rel=0.1)
