"""A run with a loss, an advantage, a filter and a metric of one's own: the worked example of docs/own-algorithm.md."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.stack_cpu.command import read_lines, run_train, settings

pytestmark = [pytest.mark.stack_cpu, pytest.mark.full, pytest.mark.timeout(600)]

TEXT = (Path(__file__).parents[2] / "docs/own-algorithm.md").read_text(encoding="utf-8")
CHANGES: dict[str, Any] = {
    "algorithm__loss": "own_example:loss",
    "algorithm__advantage": "own_example:advantage",
    "algorithm__filter": ["same_reward", "own_example:nearly_solved"],
    "algorithm__metrics": "own_example:unlikely",
    "algorithm__parameters__floor": 0.1,
    "algorithm__parameters__limit": 0.95,
    "train__num_steps": 2,
    "train__num_updates_per_step": 2,
    "eval__num_prompts": 0,
    "checkpoint__every_steps": 0,
}


def test_the_example_trains(warm_model: Path, tmp_path: Path) -> None:
    """Ranks, the driver and preflight find the module; its metric is logged, its loss has a gradient."""
    (tmp_path / "own_example.py").write_text(TEXT.partition("```python\n")[2].partition("```")[0])
    folders = {"algorithm__module_folders": [str(tmp_path)]}
    log, run = tmp_path / "output.txt", tmp_path / "quickstart"
    assert run_train(["--set", *settings(warm_model, tmp_path, **CHANGES, **folders)], log) == 0, log.read_text()[
        -3000:
    ]
    steps = read_lines(run / "metrics.jsonl")
    updates = read_lines(run / "updates.jsonl")
    trained = [line for line in steps if line["groups/trained"]]
    assert trained and len(updates) == 2 * len(trained)
    assert all(math.isfinite(line["policy/loss"]) and line["policy/grad_norm"] > 0 for line in updates)
    assert all(0 <= line["own/unlikely"] <= 1 for line in (*trained, *updates))
    resolved = json.loads((run / "resolved.json").read_text())["algorithm"]
    assert resolved["parameters"] == {"floor": 0.1, "limit": 0.95} and str(tmp_path) in resolved["module_folders"]
