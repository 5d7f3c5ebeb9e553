"""The tests marked "full" are left out of `make test` and are all of `make test-full`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("options", "collected"), [((), "test_quick"), (("-m", "full"), "test_slow")])
def test_the_slow_rest_runs_only_when_asked_for(tmp_path: Path, options: tuple[str, ...], collected: str) -> None:
    (tmp_path / "test_two.py").write_text(
        "import pytest\ndef test_quick(): pass\n@pytest.mark.full\ndef test_slow(): pass\n"
    )

    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, "--collect-only"]
    listed = subprocess.run(
        [*command, "-q", "-p", "no:cacheprovider", *options, tmp_path], capture_output=True, text=True, cwd=ROOT
    )

    assert [line.partition("::")[2] for line in listed.stdout.splitlines() if "::" in line] == [collected]


def test_ci_runs_the_slow_rest_last() -> None:
    steps = [line.split()[-1] for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("make ")]

    assert steps == ["setup", "check", "test", "test-full"]


@pytest.mark.full
def test_make_knows_both_targets() -> None:
    for target in ("test", "test-full"):
        dry = subprocess.run(["make", "-n", target], capture_output=True, text=True, cwd=ROOT, check=True).stdout
        assert "-m pytest" in dry
        assert ("-m full" in dry) == (target == "test-full")
