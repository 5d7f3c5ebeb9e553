"""SGLang turns positions as the trainer does, for each way to write them in a config.json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybridflow.rollout.cpu import cpu_environment
from tests.stack_cpu.command import ROOT

pytestmark = [pytest.mark.stack_cpu, pytest.mark.full, pytest.mark.timeout(400)]


def test_rotations_of_all_dialects_are_the_trainers(tmp_path: Path) -> None:
    """In a process of its own: SGLang is not imported into the tests' process."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.stack_cpu.engine_rope_program", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | cpu_environment(1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    differences = json.loads(result.stdout.splitlines()[-1])
    assert len(differences) > 60
    assert {name: value for name, value in differences.items() if not value < 1e-5} == {}
