"""The bench of whole GRPO steps runs, and its figures agree with each other."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.architecture.outside import read_frozen
from tests.stack_cpu.command import ROOT

pytestmark = [pytest.mark.stack_cpu, pytest.mark.full, pytest.mark.timeout(400)]


def test_cpu_seconds_of_a_step_are_those_of_its_phases() -> None:
    """2 groups of 4 completions of 128 + 8 tokens."""
    sizes = {"prompt-tokens": 128, "groups": 2, "group-size": 4, "new-tokens": 8, "steps": 1}
    options = [word for name, number in sizes.items() for word in (f"--{name}", str(number))]
    command = [sys.executable, "tests/bench/grpo_step.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    line = json.loads(done.stdout.splitlines()[-1])
    assert list(line) == read_frozen()["bench_lines"]["grpo_step.py"]
    phases = line["phase_cpu_seconds"]
    assert {"rollout", "train", "sync", "other"} <= phases.keys() and min(phases["rollout"], phases["train"]) > 0
    cpu_s = line["cpu_seconds_per_step"]
    assert sum(phases.values()) == pytest.approx(cpu_s, abs=0.05)
    assert line["tokens_per_cpu_s"] == pytest.approx(2 * 4 * (128 + 8) / cpu_s, rel=0.05)
    assert line["wall_seconds_per_step"] > 0 and line["peak_rss_mib"] > 500
