"""Dense models at every kind of layout, up to 8 processes, against one process, over packed rows of unequal length.

Layouts of 4 processes hold each pair of kinds together; those of 8, three kinds or more, are of the slow rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ext.parallel.layout import Layout
from tests.dist_cpu import rank_programs, transformers_reference
from tests.dist_cpu.launch import run_ranks
from tests.dist_cpu.tiny_models import load_model

pytestmark = [pytest.mark.dist_cpu, pytest.mark.timeout(300)]

LAYOUTS = {
    "recompute_full": Layout(recompute="full"),
    "recompute_selective": Layout(recompute="selective"),
    "dp2_overlap": Layout(dp=2, overlap=True, bucket_elements=20_000),
    "cp2_all_gather": Layout(cp=2),
    "cp2_all_to_all": Layout(cp=2, cp_comm="all_to_all"),
    "pp2_vpp2": Layout(pp=2, vpp=2),
    "tp2_sp_full": Layout(tp=2, sequence_parallel=True, recompute="full"),
    "cp2_selective": Layout(cp=2, recompute="selective"),
    "pp2_full": Layout(pp=2, recompute="full"),
    "pp4": Layout(pp=4),
    "cp4": Layout(cp=4),
    "tp2_dp2": Layout(tp=2, dp=2),
    "tp2_cp2": Layout(tp=2, cp=2),
    "tp2_cp2_sp": Layout(tp=2, cp=2, sequence_parallel=True),
    "pp2_cp2": Layout(pp=2, cp=2),
    "pp2_cp2_all_to_all_selective": Layout(pp=2, cp=2, cp_comm="all_to_all", recompute="selective"),
    "dp2_cp2": Layout(dp=2, cp=2),
    "dp2_cp2_all_to_all_overlap": Layout(dp=2, cp=2, cp_comm="all_to_all", overlap=True, bucket_elements=20_000),
    "tp2_pp2_vpp2_sp": Layout(tp=2, pp=2, vpp=2, sequence_parallel=True),
    "pp2_vpp2_dp2_overlap": Layout(pp=2, vpp=2, dp=2, overlap=True, bucket_elements=20_000),
    "tp2_pp2_dp2_sp": Layout(tp=2, pp=2, dp=2, sequence_parallel=True),
    "tp2_pp2_cp2_sp": Layout(tp=2, pp=2, cp=2, sequence_parallel=True),
    "tp2_dp2_cp2_sp_overlap_selective": Layout(
        tp=2, dp=2, cp=2, sequence_parallel=True, overlap=True, recompute="selective"
    ),
    "tp2_pp2_vpp2_cp2_sp_full": Layout(tp=2, pp=2, vpp=2, cp=2, sequence_parallel=True, recompute="full"),
}
MODELS = ("qwen3_tied", "qwen2")
"""Tied with norms on the heads, untied with biases: between them every kind of parameter."""

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def one(hf_dirs: dict[str, Path]) -> dict[str, Any]:
    return run_ranks(Layout(), rank_programs.short_run, {model: hf_dirs[model] for model in MODELS})[0]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.full if layout.world_size == 8 else ()) for name, layout in LAYOUTS.items()
    ],
)
def ranks(request: pytest.FixtureRequest, hf_dirs: dict[str, Path]) -> tuple[Layout, Ranks]:
    layout = LAYOUTS[request.param]
    return layout, run_ranks(layout, rank_programs.short_run, {model: hf_dirs[model] for model in MODELS})


def assert_same_step(found: Any, expected: Any) -> None:
    """Loss and gradient norm to 1e-5."""
    assert found.loss == pytest.approx(expected.loss, rel=0, abs=1e-5)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    assert found.num_tokens == expected.num_tokens
    assert found.sums == pytest.approx(expected.sums, rel=1e-5)


def assert_same_weights(found: list[dict[str, torch.Tensor]], expected: dict[str, torch.Tensor]) -> None:
    """Every weight of all stages together to 1e-6 absolute; ranks that export the same must agree on its bits."""
    whole: dict[str, torch.Tensor] = {}
    for weights in found:
        for name, tensor in weights.items():
            assert torch.equal(whole.setdefault(name, tensor), tensor), f"ranks disagree on {name}"
    assert whole.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (whole[name] - tensor).abs().max() < 1e-6, name


@pytest.mark.parametrize("model", MODELS)
def test_two_steps_equal_one_process(one: dict[str, Any], ranks: tuple[Layout, Ranks], model: str) -> None:
    for rank in ranks[1]:
        for step, expected in zip(rank[model]["steps"], one[model]["steps"], strict=True):
            assert_same_step(step, expected)
    assert_same_weights([rank[model]["weights"] for rank in ranks[1]], one[model]["weights"])


@pytest.mark.parametrize("model", MODELS)
def test_a_supervised_step_equals_one_process(one: dict[str, Any], ranks: tuple[Layout, Ranks], model: str) -> None:
    """Its loss is a mean over sequences, whichever ranks hold them or parts of them."""
    for rank in ranks[1]:
        assert_same_step(rank[model]["sft"]["step"], one[model]["sft"]["step"])
        assert rank[model]["sft"]["step"].num_tokens == 8
    assert_same_weights([rank[model]["sft"]["weights"] for rank in ranks[1]], one[model]["sft"]["weights"])


def test_a_loss_of_whole_sequences_equals_one_process(one: dict[str, Any], ranks: tuple[Layout, Ranks]) -> None:
    """It takes a mean over each row, whose positions are on several ranks, and knows rows and groups by number."""
    model = rank_programs.SEQUENCE_LOSS_MODEL
    for rank in ranks[1]:
        assert_same_step(rank[model]["sequence"]["step"], one[model]["sequence"]["step"])
        assert rank[model]["sequence"]["step"].num_tokens == 8
    assert_same_weights([rank[model]["sequence"]["weights"] for rank in ranks[1]], one[model]["sequence"]["weights"])


def outputs_of_replicas(layout: Layout, results: Ranks, model: str) -> Iterator[tuple[int, Any]]:
    """Data parallel rank and outputs of each rank of the last stage; the others must have none."""
    per_replica = layout.tp * layout.cp
    for number, rank in enumerate(results):
        found = rank[model]["logprobs"]
        dp_rank, pp_rank = number // per_replica % layout.dp, number // (per_replica * layout.dp)
        if pp_rank == layout.pp - 1:
            yield dp_rank, found
        else:
            assert found is None


@pytest.mark.parametrize("model", MODELS)
def test_logprobs_come_back_in_the_order_of_the_rows(
    one: dict[str, Any], ranks: tuple[Layout, Ranks], model: str
) -> None:
    """On every rank of the last stage, whole, whichever ranks computed them."""
    layout, results = ranks
    for dp_rank, found in outputs_of_replicas(layout, results, model):
        expected = one[model]["logprobs"]
        if layout.dp == 2:  # rank_batches gives the first micro-batch to the first rank
            expected = expected[:1] if dp_rank == 0 else expected[1:]
        for (logprobs_N, entropy_N), (expected_N, expected_entropy_N) in zip(found, expected, strict=True):
            torch.testing.assert_close(logprobs_N, expected_N, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(entropy_N, expected_entropy_N, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_logprobs_are_those_of_transformers(hf_dirs: dict[str, Path], ranks: tuple[Layout, Ranks], model: str) -> None:
    layout, results = ranks
    for dp_rank, found in outputs_of_replicas(layout, results, model):
        rows = transformers_reference.compute_logprobs(hf_dirs[model], rank_programs.TEMPERATURE)
        if layout.dp == 2:  # rank_batches gives the first three rows to the first rank
            rows = rows[:3] if dp_rank == 0 else rows[3:]
        logprobs_N = torch.cat([output[0] for output in found])
        torch.testing.assert_close(logprobs_N, torch.cat(rows), rtol=0, atol=1e-4)


def test_a_checkpoint_moves_between_layouts(one: dict[str, Any], hf_dirs: dict[str, Path], tmp_path: Path) -> None:
    """Saved by a virtual pipeline over context parallel ranks and by overlapped ones, it goes on at the other."""
    model = "qwen3_tied"
    layouts = [Layout(pp=2, vpp=2, cp=2), Layout(dp=2, cp=2, overlap=True, bucket_elements=20_000)]
    straight = run_ranks(Layout(), rank_programs.train_four_steps, hf_dirs[model])[0]
    for number, (saver, loader) in enumerate([layouts, layouts[::-1]]):
        checkpoint, out_dir = tmp_path / f"{number}_checkpoint", tmp_path / f"{number}_hf"
        run_ranks(saver, rank_programs.save_after_two_steps, hf_dirs[model], checkpoint, out_dir)
        reopened = load_model(out_dir).state_dict()
        for name, expected in one[model]["weights"].items():
            assert (reopened[name] - expected).abs().max() < 1e-6, name
        for rank in run_ranks(loader, rank_programs.resume, hf_dirs[model], [checkpoint]):
            for step, expected in zip(rank[0]["steps"], straight[2:], strict=True):
                assert step.loss == pytest.approx(expected.loss, abs=1e-5)
                assert step.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
