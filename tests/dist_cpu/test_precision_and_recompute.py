"""bfloat16 with float32 master weights, and what recompute computes again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_ext.parallel.layout import Layout
from tests.dist_cpu import rank_programs
from tests.dist_cpu.launch import run_ranks

pytestmark = [pytest.mark.dist_cpu, pytest.mark.timeout(300)]


def test_bfloat16_trains_float32_master_weights(hf_dirs: dict[str, Path]) -> None:
    """Over TP2, CP2 and SP as in one process, within the rounding of bfloat16; parameters are the rounded masters."""
    one = run_ranks(Layout(), rank_programs.train_bfloat16, hf_dirs["qwen3_tied"])[0]
    layout = Layout(tp=2, cp=2, sequence_parallel=True)
    for rank in run_ranks(layout, rank_programs.train_bfloat16, hf_dirs["qwen3_tied"]):
        assert rank["masters_agree"]
        for step, expected in zip(rank["steps"], one["steps"], strict=True):
            assert step.loss == pytest.approx(expected.loss, abs=0.02)
            assert step.grad_norm == pytest.approx(expected.grad_norm, rel=0.03)
        for name, expected in one["weights"].items():
            assert rank["weights"][name].dtype == torch.bfloat16
            moved = (expected - one["before"][name]).float().norm()
            assert (rank["weights"][name] - expected).float().norm() <= max(0.25 * moved, 1e-3), name


@pytest.mark.parametrize(("recompute", "attention", "mlp"), [("none", 4, 4), ("full", 8, 8), ("selective", 4, 8)])
def test_what_runs_again_in_backward(hf_dirs: dict[str, Path], recompute: str, attention: int, mlp: int) -> None:
    """Four layers, one micro-batch: `selective` leaves attention, whose kernel keeps nothing quadratic."""
    layout = Layout(recompute=recompute)  # type: ignore[arg-type]
    assert run_ranks(layout, rank_programs.count_layer_calls, hf_dirs["qwen3_tied"]) == [(attention, mlp)]
