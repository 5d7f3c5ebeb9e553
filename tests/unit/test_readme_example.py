"""docs/example.md up to the training, which starts the stack (tests/stack_cpu/test_readme_example.py).

The commands of the project run in this process, which saves the imports of each.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from hybridflow import cli
from tests.unit.readme_example import Example

HYBRIDFLOW = ".venv/bin/hybridflow "


def test_its_commands_lead_to_a_scored_response(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = Example(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = signal.getsignal(signal.SIGTERM)
    judge, said = None, dict[str, str]()
    try:
        for command in example.commands:
            if command.endswith("&"):
                judge = example.start(command)
            elif command.startswith(HYBRIDFLOW):
                name = command.split()[1]
                if name in ("train", "generate"):
                    continue
                monkeypatch.setattr(sys, "argv", ["hybridflow", *example.words(command)[1:]])
                with pytest.raises(SystemExit) as caught:
                    cli.main()
                output = capsys.readouterr()
                assert not caught.value.code, f"{command}\n{output.out}\n{output.err}"
                said[name] = said.get(name, "") + output.out
            elif not command.startswith("kill"):
                example.run(command)
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.modules.pop("scoring", None)
        if judge is not None:
            judge.kill()
            judge.wait()
    rows = [len((tmp_path / f"example/{name}.jsonl").read_text().splitlines()) for name in ("train", "test")]
    assert sum(rows) == 60
    assert "What were the sales of 1963" in said["data"]
    assert "0 errors, 0 warnings" in said["check"] and "says YES to two equal answers" in said["check"]
    (verdict,) = map(json.loads, (tmp_path / "example/verdicts.jsonl").read_text().splitlines())
    assert verdict["status"] == "scored" and verdict["judge"] == "no" and set(verdict["parts"]) == {"close", "short"}
    assert verdict["reward"] == pytest.approx(0.9 * verdict["parts"]["close"] + 0.1)
