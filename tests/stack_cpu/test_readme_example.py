"""docs/example.md to its end: 60 rows of another schema, a verifier, a judge, a tiny model, trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.readme_example import Example

pytestmark = [pytest.mark.stack_cpu, pytest.mark.full]


@pytest.mark.timeout(900)
def test_every_command_of_it(tmp_path: Path) -> None:
    example = Example(tmp_path)
    judge = None
    try:
        for command in example.commands:
            if command.endswith("&"):
                judge = example.start(command)
            elif not command.startswith("kill"):
                example.run(command)
    finally:
        if judge is not None:
            judge.kill()
            judge.wait()
    summary = json.loads((tmp_path / "runs/mine/summary.json").read_text())
    assert summary["status"].startswith("finished") and summary["num_steps"] == 2
    assert summary["judge"]["verdicts"] > 0
    line = json.loads((tmp_path / "runs/mine/completions.jsonl").read_text().splitlines()[0])
    assert {"close", "short"} <= set(line["verdict"]["parts"])
