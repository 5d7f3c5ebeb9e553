"""A virtual pipeline over two stages with batched sends and receives: refused, and still wrong upstream."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.parallel.layout import Layout
from tests.dist_cpu import patch_programs
from tests.dist_cpu.launch import run_ranks

pytestmark = [pytest.mark.dist_cpu, pytest.mark.timeout(300)]


def test_batched_exchange_is_refused_and_would_be_silently_wrong(hf_dirs: dict[str, Path]) -> None:
    """Equal gradient norms if upstream is mended; a wrong one is what `check_pipeline_exchange` is for."""
    results = run_ranks(Layout(pp=2, vpp=2), patch_programs.batched_exchange, hf_dirs["qwen3_tied"])
    for result in results:
        assert "overlap_p2p_comm = False, batch_p2p_comm = True with vpp = 2" in result["refusal"]
        assert abs(result["batched_grad_norm"] - result["grad_norm"]) > 0.01 * result["grad_norm"], (
            "upstream exchanges batches rightly now: drop schedule.check_pipeline_exchange"
        )
