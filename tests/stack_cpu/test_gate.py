"""A run whose engines are told another model than the trainer's stops before its first step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hybridflow.policy.init import write_policy
from tests.stack_cpu.command import ROOT, settings

pytestmark = [pytest.mark.stack_cpu, pytest.mark.full, pytest.mark.timeout(600)]


def test_engines_with_another_rope_are_found_before_the_first_step(tmp_path: Path) -> None:
    """By an argument of SGLang's that the trainer knows nothing of."""
    override = {"json_model_override_args": '{"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}'}
    write_policy(ROOT / "configs/models/tiny", tmp_path / "hf", seed=0)
    runs = tmp_path / "runs"
    given = settings(tmp_path / "hf", runs, rollout__weight_transport="hf_buckets", eval__num_prompts=0)
    given.append("rollout.sglang={" + ", ".join(f"{key} = '{value}'" for key, value in override.items()) + "}")
    result = subprocess.run(
        [sys.executable, "-m", "hybridflow.cli", "train", "--config", "configs/quickstart.toml", "--set", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stdout[-2000:]
    assert "ModelMismatchError" in result.stderr
    assert "rollout.sglang sets json_model_override_args for the engines alone" in result.stderr
    (run,) = (path for path in runs.iterdir() if (path / "resolved.json").exists())
    metrics = run / "metrics.jsonl"
    assert not metrics.exists() or not metrics.read_text()
