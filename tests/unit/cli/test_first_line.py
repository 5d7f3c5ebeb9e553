"""`hybridflow train` speaks before it loads anything that takes long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
import resource, sys
from hybridflow.observability.display import LiveDisplay
say = LiveDisplay.note

def first(display, text):
    used = resource.getrusage(resource.RUSAGE_SELF)
    heavy = {"torch", "numpy", "pyarrow", "ray", "transformers", "sympy", "sglang", "wandb"} & set(sys.modules)
    print(round(used.ru_utime + used.ru_stime, 2), sorted(heavy), text, flush=True)
    raise SystemExit(0)

LiveDisplay.note = first
from hybridflow import cli
cli.main()
"""


def test_the_first_line_comes_before_any_large_library() -> None:
    """Within a second of CPU time; the clock of a busy machine says nothing."""
    command = [sys.executable, "-c", PROGRAM, "train", "--config", "configs/quickstart.toml"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    seconds, heavy, text = shown.split(" ", 2)
    assert heavy == "[]", shown
    assert text == "checking data, layout and verifiers (usually 1 to 3 s)\n"
    assert float(seconds) < 1.0
