"""A run with a loss, an advantage, a filter, a metric and a source of one's own: the examples of the documentation."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tests.stack_cpu.command import read_lines, run_train, settings

pytestmark = [pytest.mark.stack_cpu, pytest.mark.full, pytest.mark.timeout(600)]

DOCS = Path(__file__).parents[2] / "docs"
LIMIT = 0.6
"""Groups of which more is right are left out by the example's filter: three of four."""
CHANGES: dict[str, Any] = {
    "algorithm__loss": "own_example:loss",
    "algorithm__advantage": "own_example:advantage",
    "algorithm__filter": ["same_reward", "own_example:nearly_solved"],
    "algorithm__metrics": "own_example:unlikely",
    "algorithm__parameters__floor": 0.1,
    "algorithm__parameters__limit": LIMIT,
    "curriculum__source": "own_source:newest",
    "train__num_steps": 2,
    "train__num_updates_per_step": 2,
    "eval__num_prompts": 0,
    "checkpoint__every_steps": 0,
}


def read_example(page: str, heading: str) -> str:
    """The first block of Python behind a heading."""
    text = (DOCS / page).read_text(encoding="utf-8").partition(f"## {heading}\n")[2]
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_examples_train(warm_model: Path, tmp_path: Path) -> None:
    """Ranks, the driver and preflight find the modules; the metric is logged, the loss has a gradient.

    The source hands out the last row first, and the filter leaves out what it should.
    """
    (tmp_path / "own_example.py").write_text(read_example("own-algorithm.md", "A worked example"))
    (tmp_path / "own_source.py").write_text(read_example("curriculum.md", "A source of your own"))
    folders = {f"{section}__module_folders": [str(tmp_path)] for section in ("algorithm", "curriculum")}
    log, run = tmp_path / "output.txt", tmp_path / "quickstart"
    arguments = ["--set", *settings(warm_model, tmp_path, **CHANGES, **folders)]
    arguments += ['reward.functions=[{call="tests.faults.reward:even"}]']  # some of most groups
    assert run_train(arguments, log) == 0, log.read_text()[-3000:]
    steps, updates = read_lines(run / "metrics.jsonl"), read_lines(run / "updates.jsonl")
    trained = [line for line in steps if line["groups/trained"]]
    assert trained and len(updates) == 2 * len(trained)
    assert all(math.isfinite(line["policy/loss"]) and line["policy/grad_norm"] > 0 for line in updates)
    assert all(0 <= line["own/unlikely"] <= 1 for line in (*trained, *updates))
    resolved = json.loads((run / "resolved.json").read_text())
    assert resolved["algorithm"]["parameters"] == {"floor": 0.1, "limit": LIMIT}
    assert all(str(tmp_path) in resolved[section]["module_folders"] for section in ("algorithm", "curriculum"))
    completions = read_lines(run / "completions.jsonl")
    prompts = {line["group_id"]: line["prompt_id"] for line in completions}
    assert [prompts[group] for group in sorted(prompts)] == [f"train-{row:06d}" for row in range(63, 47, -1)]
    means = [sum(line["reward"] for line in completions if line["group_id"] == group) / 4 for group in prompts]
    num_solved = sum(LIMIT < mean < 1 for mean in means)
    assert sum(line.get("groups/filtered/nearly_solved", 0) for line in steps) == num_solved > 0
    assert sum(line["groups/trained"] for line in steps) == sum(0 < mean < LIMIT for mean in means)
