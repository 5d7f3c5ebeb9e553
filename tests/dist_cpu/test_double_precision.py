"""A policy in float64 against transformers in float64: the real path to 1e-10, at several layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.qwen3_moe import modeling_qwen3_moe

from megatron_ext.parallel.layout import Layout
from tests.dist_cpu import rank_programs
from tests.dist_cpu.launch import run_ranks
from tests.dist_cpu.test_policy_update import MINI_PROMPTS, Reference, run_update, values

pytestmark = [pytest.mark.dist_cpu, pytest.mark.timeout(300)]

LAYOUTS = {
    "one": Layout(),
    "tp2_sp": Layout(tp=2, sequence_parallel=True),
    "pp2": Layout(pp=2),
    "dp2": Layout(dp=2),
    "cp2": Layout(cp=2),
}


def rms_norm(self: Any, hidden_states: Tensor) -> Tensor:
    """RMSNorm in the dtype that it is given: transformers goes to float32 and back."""
    variance = hidden_states.square().mean(-1, keepdim=True)
    return self.weight * hidden_states * torch.rsqrt(variance + self.variance_epsilon)


@pytest.fixture(scope="module")
def reference(hf_dirs: dict[str, Path]) -> Reference:
    with pytest.MonkeyPatch.context() as patch:
        for norm in (modeling_qwen3.Qwen3RMSNorm, modeling_qwen3_moe.Qwen3MoeRMSNorm):
            patch.setattr(norm, "forward", rms_norm)
        return Reference(hf_dirs["qwen3_tied"], MINI_PROMPTS, 1, torch.float64)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_steps_of_a_policy_in_float64(name: str, reference: Reference, hf_dirs: dict[str, Path]) -> None:
    """Losses, gradient norms and weights of four clipped policy gradient steps with AdamW."""
    ranks = run_ranks(LAYOUTS[name], run_update, hf_dirs["qwen3_tied"], MINI_PROMPTS, 1, torch.float64)
    for rank in ranks:
        reports = rank["reports"]
        assert [report.loss for report in reports] == pytest.approx(reference.losses, rel=0, abs=1e-10)
        assert [report.grad_norm for report in reports] == pytest.approx(reference.norms, rel=1e-10)
        assert values(reports, "policy/kl") == pytest.approx(reference.kls, abs=1e-10)
    weights = {key: tensor for rank in ranks for key, tensor in rank["weights"].items()}
    for key, tensor in weights.items():
        assert tensor.dtype == torch.float64
        assert (tensor - reference.model.state_dict()[key]).abs().max() < 1e-9, key


def test_other_policies_are_not_touched(hf_dirs: dict[str, Path]) -> None:
    """A float64 policy's rules end with its computation."""
    (found,) = run_ranks(Layout(), defaults_after_a_step, hf_dirs["qwen3_tied"])
    assert found == (torch.float32, torch.float32)


def defaults_after_a_step(topology: Any, layout: Layout, hf_dir: Path) -> tuple[torch.dtype, torch.dtype]:
    policy = rank_programs.open_policy(hf_dir, layout, topology, torch.float64)
    rank_programs.train(policy, rank_programs.rank_batches(topology, layout), 1)
    return torch.get_default_dtype(), torch.zeros((), dtype=torch.float64).float().dtype
