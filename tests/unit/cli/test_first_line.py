"""`hybridflow train` speaks before it loads anything that takes long."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hybridflow import cli

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
from hybridflow.recording.display.live import LiveDisplay
say = LiveDisplay.note

def first(display, text):
    heavy = {"torch", "numpy", "pyarrow", "ray", "transformers", "sympy", "sglang", "wandb"} & set(sys.modules)
    print(sorted(heavy), text, flush=True)
    raise SystemExit(0)

LiveDisplay.note = first
from hybridflow import cli
cli.main()
"""


def test_ctrl_c_while_the_command_is_being_loaded_is_told_without_a_traceback() -> None:
    """The module of the commands is replaced by one that is interrupted while it is imported."""
    program = (
        "import sys\n"
        "from importlib.abc import MetaPathFinder\n"
        "class Interrupted(MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'hybridflow.cli':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from hybridflow.__main__ import run\n"
        "run()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted; nothing was started\n")


def test_ctrl_c_that_no_command_tells_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hybridflow.data.convert.convert_rows", interrupted)
    monkeypatch.setattr(sys, "argv", ["hybridflow", "data", "convert", "rows.csv", "--output", "rows.jsonl"])
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert end.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_the_first_line_comes_before_any_large_library() -> None:
    """Large libraries are what takes long: without them the line is there in half a second."""
    command = [sys.executable, "-c", PROGRAM, "train", "--config", "configs/quickstart.toml"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    heavy, text = shown.split(" ", 1)
    assert heavy == "[]", shown
    assert text == "checking data, layout and verifiers (usually 1 to 3 s)\n"
