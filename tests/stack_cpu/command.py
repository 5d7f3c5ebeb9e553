"""Starts `hybridflow train` as a user would, watches its processes and reads its records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from hybridflow.types import Prompt
from tests.builders import build_prompt

ROOT = Path(__file__).parents[2]


def settings(model: Path, directory: Path, **changes: Any) -> list[str]:
    """--set values of a short run: 4 steps of 4 prompts x 4 completions, a checkpoint at each step."""
    values: dict[str, Any] = {
        "run.directory": str(directory),
        "model.path": str(model),
        "model.init": "weights",
        "warmup.stages": [],
        "data.synth.doc_tokens": 64,
        "data.synth.num_train": 64,
        "data.synth.num_test": 16,
        "train.num_steps": 4,
        "train.prompts_per_step": 8,
        "algorithm.num_completions": 4,
        "eval.num_prompts": 16,
        "checkpoint.every_steps": 1,
        "rollout.num_threads": 1,
    }
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def build_prompts(num_prompts: int) -> list[Prompt]:
    """Prompts of 40, 50, 60, ... tokens, no two alike."""
    return [
        build_prompt(
            f"p{n}", token_ids=[5 + (7 * n + 3 * i) % 200 for i in range(40 + 10 * n)], data_source="synth_easy"
        )
        for n in range(num_prompts)
    ]


@contextmanager
def started_train(
    arguments: list[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """`hybridflow train --config configs/quickstart.toml --set ...` in a session of its own, output to `log`.

    `environment` comes on top of that of the tests.

    Whatever is left of it at the end, when a test has failed, is killed.
    """
    command = [sys.executable, "-m", "hybridflow.cli", "train", "--config", str(ROOT / "configs/quickstart.toml")]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | (environment or {}),
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            left = descendants(process)
            process.kill()
            for child in left:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            process.wait()


def run_train(arguments: list[str], log: Path, timeout_s: float = 170) -> int:
    """Runs to the end; returns the exit code."""
    with started_train(arguments, log) as process:
        return process.wait(timeout=timeout_s)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], timeout_s: float = 150) -> None:
    """Waits for the condition while the process lives; fails the test if either ends first."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, f"the run ended early with exit code {process.returncode}"
        assert time.monotonic() < deadline, f"nothing after {timeout_s} s"
        time.sleep(0.2)


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def still_alive(processes: list[psutil.Process], within_s: float) -> list[str]:
    """Names of those that have not ended `within_s` seconds later."""
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return [f"{p.pid} {p.name()}" for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what depends on the clock. The same question asked twice at a time is sent to a judge once."""
    return [
        {
            key: value
            for key, value in line.items()
            if key != "time" and not key.startswith(("time/", "perf/", "judge/", "eval/judge/"))
        }
        for line in lines
    ]
