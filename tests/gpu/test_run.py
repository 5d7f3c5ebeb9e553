"""The script for a GPU machine: its dry run on a CPU, and what it carries."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.carried import CARRIED, check_wheels, requirements
from tests.gpu.imports import Guard, allowed_distributions
from tests.gpu.program import CHECKS, TOTAL_S
from tests.gpu.sizes import GPU
from tests.gpu.step_checks import PEER

SCRIPT = Path(__file__).parent / "run.sh"


def run(*options: str) -> tuple[int, list[dict[str, Any]], str]:
    """(exit status, lines of the checks, what went to stderr)"""
    done = subprocess.run([SCRIPT, *options], capture_output=True, text=True, timeout=170)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.stderr


@pytest.mark.full
def test_every_check_passes_in_a_dry_run() -> None:
    """On a CPU with tiny sizes; nothing is imported that a bare GPU machine has not and that is not carried."""
    status, lines, errors = run("--dry-run")
    assert [line for line in lines if not line["ok"]] == [], errors
    assert status == 0 and [line["check"] for line in lines] == list(CHECKS)
    named = {line["check"]: line for line in lines}
    assert named["environment"]["libraries"]["megatron-core"] and named["environment"]["dry_run"]
    assert named["hf_agreement"]["float32_mean_gap"] < 1e-5
    assert named["against_cpu"]["mean_gap"] == named["against_cpu"]["largest_weight_gap"] == 0
    assert {"sdpa", "varlen", "cudnn"} <= named["attention_backends"].keys()
    assert named["residency_fused"]["library"] == "transformer_engine"
    losses = {named["train_step"][recompute]["loss"] for recompute in ("none", "full", "selective")}
    assert len(losses) == 1


@pytest.mark.full
def test_a_check_that_fails_does_not_stop_the_others() -> None:
    status, lines, _ = run(
        "--dry-run", "--only", "hf_agreement", "train_step", "logprob_memory",
        "--time-box", "hf_agreement=0.01", "train_step=0",
    )  # fmt: skip
    assert status == 1
    assert [(line["check"], line["ok"]) for line in lines] == [
        ("hf_agreement", False),
        ("train_step", False),
        ("logprob_memory", True),
    ]
    assert "and was ended" in lines[0]["faults"][0] and "no time was left for it" in lines[1]["faults"][0]


@pytest.mark.full
@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_without_a_gpu_each_check_says_so() -> None:
    """As on a GPU, each in a fresh process."""
    status, lines, _ = run("--only", "environment", "train_step")
    assert status == 1 and [line["ok"] for line in lines] == [False, False]
    assert {line["faults"][0].partition(":")[0] for line in lines} == {"torch sees no GPU"}


def test_what_is_carried_is_listed_by_the_script(tmp_path: Path) -> None:
    listed = subprocess.run([SCRIPT, "--wheels"], capture_output=True, text=True, check=True).stdout.split()
    assert listed == requirements() and [line.split("==")[0] for line in listed] == list(CARRIED)
    for line in listed:
        name, version = line.split("==")
        with pytest.raises(SystemExit, match=f"no wheel of {line}"):
            check_wheels(tmp_path)
        (tmp_path / f"{name.replace('-', '_')}-{version}-cp312-cp312-linux_x86_64.whl").write_bytes(b"x" * 2**20)
    assert check_wheels(tmp_path).startswith(f"{len(listed)} wheels, {len(listed):.1f} MiB")
    with (tmp_path / "large-1-py3-none-any.whl").open("wb") as file:
        file.truncate(64 * 2**20)
    with pytest.raises(SystemExit, match="the limit is 67,108,864"):
        check_wheels(tmp_path)


def test_what_no_bare_machine_has_is_kept_away() -> None:
    guard, allowed = Guard(), allowed_distributions()
    assert {"torch", "transformers", "megatron-core", "msgspec", "numpy", "hybridflow"} <= allowed
    assert not allowed & {"sglang", "ray", "pyzmq", "scipy", "pytest"}
    assert guard.keeps_away("sglang.srt.server") and guard.keeps_away("ray") and not guard.keeps_away("torch.nn")
    assert guard.missing == []


def test_arithmetic_is_counted_as_the_peer_counts_it() -> None:
    """26.8% of 989 TFLOP/s at 10.15k tokens/s, to 1%; and all checks fit the time of a GPU."""
    ours = GPU.step.flops_per_token(GPU.step_tokens)
    assert ours == pytest.approx(PEER["mfu"] * 989.4e12 / PEER["tokens_per_s"], rel=0.01)
    assert GPU.step.num_parameters == pytest.approx(0.596e9, rel=0.01)
    assert TOTAL_S <= 480 and all(check.limit_s < TOTAL_S for check in CHECKS.values())
