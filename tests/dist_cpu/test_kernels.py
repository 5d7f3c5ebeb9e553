"""Training by each library of `kernels`, through stand-ins: the same numbers, and the kernels that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ext.parallel.layout import Layout
from tests.dist_cpu import kernel_choice_programs
from tests.dist_cpu.launch import run_ranks

pytestmark = [pytest.mark.dist_cpu, pytest.mark.timeout(300)]

LIBRARIES = ("apex", "transformer_engine")
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module")
def made(hf_dirs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    out_dir = tmp_path_factory.mktemp("kernels")
    return run_ranks(Layout(), kernel_choice_programs.train_by_each, hf_dirs["qwen3_tied"], out_dir)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_that_is_named_computes_and_the_numbers_stay(
    made: dict[Any, Any], library: str, dtype: torch.dtype
) -> None:
    """Four layers with 4 norms and 4 linear layers each and a last norm, over 3 micro-batches and 2 steps."""
    torchs, theirs = made["torch", dtype], made[library, dtype]
    num_passes = len(torchs["steps"]) * 3
    assert theirs["calls"] == {"adam": 2, "rms_norm": 17 * num_passes, "weight_gradients": 16 * num_passes}
    loose = dtype == torch.bfloat16
    for step, expected in zip(theirs["steps"], torchs["steps"], strict=True):
        assert step.loss == pytest.approx(expected.loss, abs=5e-3 if loose else 1e-6)
        assert step.grad_norm == pytest.approx(expected.grad_norm, rel=2e-2 if loose else 1e-5)
    for name, expected in torchs["weights"].items():
        # A fused sum rounds a gradient once less, so that a bfloat16 weight may be the neighbour of torch's.
        spacing, step = (2.0**-7, 1e-3) if loose else (0.0, 1e-6)
        torch.testing.assert_close(theirs["weights"][name], expected, rtol=spacing, atol=step)
    assert library.split("_")[0] in theirs["says"].lower()


@pytest.mark.parametrize("library", LIBRARIES)
def test_checkpoints_do_not_depend_on_the_library(made: dict[Any, Any], library: str) -> None:
    """Names are torch's; one goes on to the bit with the library that wrote it, and within rounding with torch."""
    theirs = made[library, torch.float32]
    assert theirs["names"] == made["torch", torch.float32]["names"]
    assert theirs["goes_on"] and theirs["apart"] <= 1e-6


def test_torch_is_as_it_was_after_another_library(made: dict[Any, Any]) -> None:
    before, after = made["torch", torch.float32], made["torch again"]
    assert before["steps"] == after["steps"]
    assert all(torch.equal(before["weights"][name], after["weights"][name]) for name in before["weights"])


def test_attention_of_transformer_engine_is_given_packed_segments(made: dict[Any, Any]) -> None:
    torch.testing.assert_close(made["attention"]["transformer_engine"], made["attention"]["torch"])
