"""`hybridflow train` speaks before it loads anything that takes long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
from hybridflow.observability.display import LiveDisplay
say = LiveDisplay.note

def first(display, text):
    heavy = {"torch", "numpy", "pyarrow", "ray", "transformers", "sympy", "sglang", "wandb"} & set(sys.modules)
    print(sorted(heavy), text, flush=True)
    raise SystemExit(0)

LiveDisplay.note = first
from hybridflow import cli
cli.main()
"""


def test_the_first_line_comes_before_any_large_library() -> None:
    """These are what takes long: without them the line is there in half a second."""
    command = [sys.executable, "-c", PROGRAM, "train", "--config", "configs/quickstart.toml"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    heavy, text = shown.split(" ", 1)
    assert heavy == "[]", shown
    assert text == "checking data, layout and verifiers (usually 1 to 3 s)\n"
