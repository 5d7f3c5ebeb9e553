"""A stay on the host changes no bit, frees what it says, and is noticed by whoever needs what is away."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_ext.parallel.layout import Layout
from tests.dist_cpu import checkpoint_programs, rank_programs
from tests.dist_cpu.launch import run_ranks

pytestmark = [pytest.mark.dist_cpu, pytest.mark.timeout(300)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(hf_dirs: dict[str, Path], dtype: torch.dtype, tmp_path: Path) -> None:
    for rank in run_ranks(Layout(dp=2), checkpoint_programs.leave_and_return, hf_dirs["qwen3_untied"], dtype, tmp_path):
        sizes = rank["sizes"]
        assert sizes == rank["expected_sizes"]
        assert rank["away"].freed_bytes == sum(sizes.values())
        assert rank["away"].copied_bytes == sizes["weights"] + sizes["optimizer"]
        assert rank["resident_while_away"] == 0
        weights, rest = rank["back"]
        assert (weights.freed_bytes, weights.copied_bytes) == (-sizes["weights"], sizes["weights"])
        assert (rest.freed_bytes, rest.copied_bytes) == (-sizes["gradients"] - sizes["optimizer"], sizes["optimizer"])
        assert rank["again"].freed_bytes == rank["again"].copied_bytes == 0
        assert rank["equal"]
        assert rank["steps"][0] == rank["steps"][1]
        assert rank_programs.equal_bits(*rank["states"])
        assert all(rank["reference"]["unchanged"])
        for outputs in rank["reference"]["outputs"]:
            assert rank_programs.same_outputs(outputs, rank["at_reference"])


def test_what_needs_the_device_says_so(hf_dirs: dict[str, Path], tmp_path: Path) -> None:
    arguments = (hf_dirs["qwen3_untied"], torch.float32, tmp_path)
    (rank,) = run_ranks(Layout(), checkpoint_programs.leave_and_return, *arguments)
    assert len(rank["refused"]) == 5
    assert rank["refused"].pop(0) == "weights on the host: call to_device('weights') before this"  # the reference's
    assert rank["refused"][0] == "weights on the host: call to_device('weights') before this"
    assert rank["refused"][1].startswith("weights, gradients, optimizer on the host")


def test_moments_leave_whenever_they_were_made(hf_dirs: dict[str, Path]) -> None:
    """Moments of a fused optimizer come with its first step, and a load replaces them."""
    (rank,) = run_ranks(Layout(), checkpoint_programs.move_a_fused_optimizer, hf_dirs["qwen3_tied"])
    assert rank["freed"] == [rank["expected"]] * 3


def test_a_fused_optimizer_has_no_state_before_its_step(hf_dirs: dict[str, Path]) -> None:
    (rank,) = run_ranks(Layout(), checkpoint_programs.move_a_fused_optimizer, hf_dirs["qwen3_tied"])
    assert not rank["state_before"]


def test_activations_alone_are_offloaded_after_a_stay_on_the_host(hf_dirs: dict[str, Path]) -> None:
    """Weights are at other addresses then, and are still not taken for activations."""
    (before, after), *_ = run_ranks(
        Layout(), checkpoint_programs.offload_after_a_stay_on_the_host, hf_dirs["qwen3_tied"]
    )
    assert before == after > 0


@pytest.mark.parametrize("layout", [Layout(), Layout(pp=2)], ids=["one", "pp2"])
def test_offloaded_activations_give_the_same_steps(hf_dirs: dict[str, Path], layout: Layout) -> None:
    for rank in run_ranks(layout, checkpoint_programs.offload_activations, hf_dirs["qwen3_tied"]):
        assert rank["moved_bytes"] > 100_000
        assert rank["steps"][0] == rank["steps"][1]
        assert rank_programs.equal_bits(*rank["states"])
