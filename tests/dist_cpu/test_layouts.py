"""Every layout trains as one process does, exports what it loaded, refuses a broken step and resumes bit for bit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_ext.parallel.layout import Layout
from tests.dist_cpu import rank_programs, transformers_reference
from tests.dist_cpu.launch import run_ranks
from tests.dist_cpu.tiny_models import load_model

pytestmark = [pytest.mark.dist_cpu, pytest.mark.timeout(300)]

LAYOUTS = {
    "one": Layout(),
    "tp2": Layout(tp=2),
    "tp2_sp": Layout(tp=2, sequence_parallel=True),
    "dp2": Layout(dp=2),
    "pp2": Layout(pp=2),
    "tp2_pp2": Layout(tp=2, pp=2),
}
PARALLEL = [name for name in LAYOUTS if name != "one"]
MODELS = ("qwen3_tied", "qwen3_untied")
TOLERANCE = 1e-5

Exercise = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def out_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exercise")


@pytest.fixture(scope="module")
def exercise(hf_dirs: dict[str, Path], out_dir: Path) -> Exercise:
    """Results of `rank_programs.exercise` by layout name; each layout is started once."""

    @functools.cache
    def run(name: str) -> list[dict[str, Any]]:
        (out_dir / name).mkdir()
        models = {model: hf_dirs[model] for model in MODELS}
        return run_ranks(LAYOUTS[name], rank_programs.exercise, models, out_dir / name)

    return run


def whole_model(ranks: list[dict[str, Any]], key: str) -> dict[str, torch.Tensor]:
    """Tensors of all stages together. Ranks that export the same tensor must agree on its bits."""
    whole: dict[str, torch.Tensor] = {}
    for rank in ranks:
        for name, tensor in rank[key].items():
            assert torch.equal(whole.setdefault(name, tensor), tensor), f"ranks disagree on {name}"
    return whole


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (found[name] - tensor).norm() / tensor.norm()
        assert error < TOLERANCE, f"{name} is off by {error:.1e}"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", PARALLEL)
def test_four_steps_equal_one_process(exercise: Exercise, layout: str, model: str) -> None:
    reference = exercise("one")[0][model]
    ranks = [rank[model] for rank in exercise(layout)]
    for rank in ranks:
        for step, expected in zip(rank["steps"], reference["steps"], strict=True):
            assert step.loss == pytest.approx(expected.loss, rel=TOLERANCE)
            assert step.grad_norm == pytest.approx(expected.grad_norm, rel=TOLERANCE)
            assert step.num_tokens == expected.num_tokens
            assert step.sums == pytest.approx(expected.sums, rel=TOLERANCE)
            assert not step.skipped
    assert_close(whole_model(ranks, "weights"), reference["weights"])


@pytest.mark.parametrize("model", MODELS)
def test_one_process_equals_transformers(exercise: Exercise, hf_dirs: dict[str, Path], model: str) -> None:
    """Four AdamW steps on rows one at a time, unpacked, with torch and transformers alone."""
    reference = exercise("one")[0][model]
    losses, norms, weights = transformers_reference.train(
        hf_dirs[model],
        rank_programs.mean_weighted_loss,
        rank_programs.OPTIONS,
        steps=4,
        temperature=rank_programs.TEMPERATURE,
    )
    assert [step.loss for step in reference["steps"]] == pytest.approx(losses, rel=TOLERANCE)
    assert [step.grad_norm for step in reference["steps"]] == pytest.approx(norms, rel=TOLERANCE)
    assert_close(reference["weights"], {name: weights[name] for name in reference["weights"]})


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", PARALLEL)
def test_a_supervised_step_equals_one_process(exercise: Exercise, layout: str, model: str) -> None:
    """Its loss is a mean over sequences. Every updated weight to 1e-6 absolute."""
    expected = exercise("one")[0][model]["sft"]
    ranks = [rank[model]["sft"] for rank in exercise(layout)]
    for rank in ranks:
        assert rank["step"].loss == pytest.approx(expected["step"].loss, rel=TOLERANCE)
        assert rank["step"].grad_norm == pytest.approx(expected["step"].grad_norm, rel=TOLERANCE)
        assert rank["step"].num_tokens == 8
    weights = whole_model(ranks, "weights")
    assert weights.keys() == expected["weights"].keys()
    for name, tensor in weights.items():
        assert (tensor - expected["weights"][name]).abs().max() < 1e-6, name


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_gives_the_bits_that_were_loaded(
    exercise: Exercise, hf_dirs: dict[str, Path], layout: str, model: str
) -> None:
    ranks = [rank[model] for rank in exercise(layout)]
    assert all(rank["changed_by_loading"] == [] for rank in ranks)
    on_disk = load_file(hf_dirs[model] / "model.safetensors")
    assert whole_model(ranks, "at_start").keys() == on_disk.keys()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_model_opens_in_transformers(exercise: Exercise, out_dir: Path, layout: str, model: str) -> None:
    weights = whole_model([rank[model] for rank in exercise(layout)], "weights")
    reopened = load_model(out_dir / layout / f"{model}_hf").state_dict()
    assert all(torch.equal(reopened[name], tensor) for name, tensor in weights.items())
    tied = {"lm_head.weight"} if model == "qwen3_tied" else set()
    assert reopened.keys() == weights.keys() | tied


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", ["tp2", "tp2_sp", "pp2", "tp2_pp2"])
def test_forward_gives_the_logprobs_of_one_process(exercise: Exercise, layout: str, model: str) -> None:
    expected = exercise("one")[0][model]["logprobs"]
    last_stage = LAYOUTS[layout].pp - 1
    for number, rank in enumerate(exercise(layout)):
        found = rank[model]["logprobs"]
        if number // LAYOUTS[layout].tp != last_stage:
            assert found is None
            continue
        for (logprobs_N, entropy_N), (expected_N, expected_entropy_N) in zip(found, expected, strict=True):
            torch.testing.assert_close(logprobs_N, expected_N, rtol=TOLERANCE, atol=TOLERANCE)
            torch.testing.assert_close(entropy_N, expected_entropy_N, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logprobs_are_those_of_transformers(
    exercise: Exercise, hf_dirs: dict[str, Path], layout: str, model: str
) -> None:
    rows = transformers_reference.compute_logprobs(hf_dirs[model], rank_programs.TEMPERATURE)
    found = [rank[model]["logprobs"] for rank in exercise(layout) if rank[model]["logprobs"] is not None]
    for number, logprobs in enumerate(found):
        expected = rows
        if LAYOUTS[layout].dp == 2:  # rank_batches gives the first three rows to the first rank
            expected = rows[:3] if number == 0 else rows[3:]
        logprobs_N = torch.cat([output[0] for output in logprobs])
        torch.testing.assert_close(logprobs_N, torch.cat(expected), rtol=0, atol=1e-4)
    assert found


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_broken_gradient_changes_nothing_on_any_rank(exercise: Exercise, layout: str, model: str) -> None:
    """With data parallel only rank 0's loss is broken, yet all ranks skip."""
    for rank in exercise(layout):
        assert rank[model]["broken_step"].skipped
        assert rank[model]["unchanged_by_broken_step"]


@pytest.mark.parametrize("layout", ["one", "tp2", "dp2", "pp2"])
def test_resume_is_bit_exact_and_reads_other_layouts(
    exercise: Exercise, hf_dirs: dict[str, Path], out_dir: Path, layout: str
) -> None:
    """Two steps, new processes, two steps: the bits of four steps. And a tp2 checkpoint goes on at this layout."""
    model = "qwen3_tied"
    straight = [rank[model] for rank in exercise(layout)]
    exercise("tp2")
    checkpoints = [out_dir / name / f"{model}_checkpoint" for name in (layout, "tp2")]
    resumed = run_ranks(LAYOUTS[layout], rank_programs.resume, hf_dirs[model], checkpoints)
    for rank, expected in zip(resumed, straight, strict=True):
        assert rank[0]["steps"] == expected["steps"][2:]
        assert rank_programs.equal_bits(rank[0]["state"], expected["state"])
    from_tp2 = whole_model([rank[1] for rank in resumed], "weights")
    assert_close(from_tp2, whole_model([rank[model] for rank in exercise("tp2")], "weights"))
