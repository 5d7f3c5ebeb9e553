"""KL to a reference on the real stack: a stopped and resumed run equals one that was never stopped, to the bit.

The train worker of run B is killed after its second step. What B resumes with is the policy of that step; its reference
is still the first weights, read from the run folder. Both runs measure KL in the loss and AEPO's entropy.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.stack_cpu.command import (
    descendants,
    read_lines,
    run_train,
    settings,
    started_train,
    wait_until,
    without_times,
)

pytestmark = [pytest.mark.stack_cpu, pytest.mark.full, pytest.mark.timeout(600)]

CHANGES: dict[str, Any] = {
    "algorithm__kl__place": "loss",
    "algorithm__kl__coefficient": 0.5,
    "algorithm__kl__estimator": "unbiased",
    "algorithm__kl__reference": "start",
    "algorithm__aepo__high": 0.5,
    "algorithm__aepo__low": 0.01,
    "train__mini_batch_prompts": 4,
    "eval__num_prompts": 0,
    "train__offload_while_decoding": "on",
}


@pytest.fixture(scope="module")
def straight(warm_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of run A."""
    directory = tmp_path_factory.mktemp("straight")
    log = directory / "output.txt"
    assert run_train(["--set", *settings(warm_model, directory, **CHANGES)], log) == 0, log.read_text()[-3000:]
    return directory / "quickstart"


def test_the_distance_grows_from_nothing_and_its_passes_are_timed(straight: Path, warm_model: Path) -> None:
    lines = read_lines(straight / "metrics.jsonl")
    told = [line["policy/ref_kl"] for line in lines if "policy/ref_kl" in line]
    updates = [line["policy/ref_kl"] for line in read_lines(straight / "updates.jsonl")]
    assert abs(updates[0]) < 1e-9 < told[-1], "the first optimizer step meets the reference itself"
    assert all(line["time/reference_s"] > 0 and line["time/measure_s"] > 0 for line in lines)
    assert all(line["aepo/entropy"] > 0 for line in lines)
    kept, first = load_file(straight / "reference/model.safetensors"), load_file(warm_model / "model.safetensors")
    assert kept.keys() == first.keys() and all(bool((kept[name] == first[name]).all()) for name in kept)


def test_a_resumed_run_equals_one_that_was_never_stopped(straight: Path, warm_model: Path, tmp_path: Path) -> None:
    log, run = tmp_path / "output.txt", tmp_path / "quickstart"
    arguments = ["--set", *settings(warm_model, tmp_path, **CHANGES)]
    with started_train(arguments, log) as process:
        wait_until(lambda: (run / "checkpoints/rl-000002/state.json").exists(), process)
        victim = next(child for child in descendants(process) if "TrainWorker" in " ".join(child.cmdline()))
        os.kill(victim.pid, signal.SIGKILL)
        assert process.wait(timeout=60) == 1
    away = tmp_path / "elsewhere"
    (run / "reference").rename(away)
    assert run_train(["--resume", *arguments], log) == 1
    assert "It holds the reference of algorithm.kl" in log.read_text() and "Traceback" not in log.read_text()
    shutil.move(away, run / "reference")
    assert run_train(["--resume", *arguments], log) == 0, log.read_text()[-3000:]
    for name in ("completions.jsonl", "metrics.jsonl", "updates.jsonl"):
        assert without_times(read_lines(run / name)) == without_times(read_lines(straight / name)), name
    resumed, uninterrupted = (load_file(folder / "hf/model.safetensors") for folder in (run, straight))
    assert all(bool((resumed[name] == uninterrupted[name]).all()) for name in uninterrupted)
