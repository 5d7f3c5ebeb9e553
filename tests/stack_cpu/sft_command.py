"""Runs of `hybridflow sft` on two tensor parallel ranks, and commands that something is done to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.stack_cpu.command import ROOT, descendants, read_lines, still_alive, wait_until

PER_STEP, RATE = 4, 1e-3


def start(*arguments: object, log: Path) -> subprocess.Popen[bytes]:
    """`hybridflow <arguments>` in a session of its own, output to `log`."""
    command = [sys.executable, "-m", "hybridflow.cli", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True)


def run(*arguments: object, log: Path, code: int = 0) -> str:
    """Output of `hybridflow <arguments>`, which must end with this exit code."""
    process = start(*arguments, log=log)
    try:
        assert process.wait(timeout=170) == code, log.read_text()[-3000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "Traceback" not in log.read_text()
    return log.read_text()


@dataclass(frozen=True)
class Ended:
    """How a command that something was done to came to its end."""

    code: int
    output: str
    victim: int
    """Process id of a train worker."""
    left_behind: list[str]
    """Processes that are alive 10 s later."""
    status: str
    """The status that summary.json gives."""


def end_with(
    act: Callable[[subprocess.Popen[bytes], int], None], arguments: list[str], folder: Path, within_s: float = 30
) -> Ended:
    """Starts a run, lets it do some steps and one checkpoint, acts on it, and waits for its end."""
    log, before = folder.parent / "output.txt", num_lines(folder)
    process = start(*arguments, log=log)
    try:
        wait_until(lambda: num_lines(folder) > before + 4 and bool(saved_steps(folder)), process)
        children = descendants(process)
        victim = next(child.pid for child in children if "TrainWorker" in " ".join(child.cmdline()))
        acted = time.monotonic()
        act(process, victim)
        code = process.wait(timeout=within_s)
        left_behind = still_alive(children, within_s=max(0.1, 10 - (time.monotonic() - acted)))
    except AssertionError as error:
        error.add_note(log.read_text()[-3000:])
        raise
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    status = json.loads((folder / "summary.json").read_text())["status"]
    return Ended(code, log.read_text(), victim, left_behind, status)


def num_lines(folder: Path) -> int:
    return len(read_lines(folder / "metrics.jsonl"))


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.parent.name.split("-")[1]) for path in folder.glob("checkpoints/step-??????/state.json"))


def sft_arguments(directory: Path, data: Path, num_steps: int, **changes: Any) -> list[str]:
    """A run on two tensor parallel ranks, with a checkpoint at each second step."""
    values = {
        "run.directory": str(directory),
        "data.path": str(data),
        "train.num_steps": num_steps,
        "train.sequences_per_step": PER_STEP,
        "train.learning_rate": RATE,
        "train.lr_schedule": "constant",
        "train.lr_warmup_steps": 2,
        "train.max_tokens_per_micro_batch": 4096,
        "train.layout.tp": 2,
        "checkpoint.every_steps": 2,
        "tracking.wandb": "disabled",
    } | changes
    return ["sft", "--config", "configs/sft.toml", "--set", *(f"{k}={json.dumps(v)}" for k, v in values.items())]
