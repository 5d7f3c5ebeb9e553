"""A whole run in which a rank stands still: it is named with its stack, in time, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from hybridflow.cluster.watchdog import END_AFTER_S, REPORT_AFTER_S
from tests.stack_cpu.command import descendants, read_lines, settings, started_train, still_alive, wait_until

pytestmark = [pytest.mark.stack_cpu, pytest.mark.faults, pytest.mark.full, pytest.mark.timeout(400)]

DEADLINE_S = 20.0
CLOSE_S = 15.0
PHASES = ("train", "checkpoint", "sync", "rollout")
"""In which a worker may be when it is stopped."""
SLEEPER = '''
import importlib.abc, sys, time

class Finder(importlib.abc.MetaPathFinder):
    """Puts a rank to sleep in its second update."""
    def find_spec(self, name, path, target=None):
        if name == "hybridflow.trainer.core":
            sys.meta_path.remove(self)
            import hybridflow.trainer.policy_update as update
            genuine, calls = update.update_policy, []
            def fall_asleep(policy, *args, **kwargs):
                calls.append(1)
                if policy.topology.rank == 1 and len(calls) == 2:
                    time.sleep(3600)
                return genuine(policy, *args, **kwargs)
            update.update_policy = fall_asleep
        return None

sys.meta_path.insert(0, Finder())
'''


@dataclass(frozen=True)
class Ended:
    """How a run that stood still came to its end."""

    code: int
    output: str
    stacks: str
    still_s: float
    """From the moment in which it stood still to its end."""
    left: list[str]


def run_until_it_ends(tmp_path: Path, warm_model: Path, environment: dict[str, str], stop_rank: int | None) -> Ended:
    log, folder = tmp_path / "log", tmp_path / "quickstart"
    limits = {f"cluster__stall__{phase}_s": DEADLINE_S for phase in PHASES}
    arguments = ["--set", *settings(warm_model, tmp_path, **limits)]
    with started_train(arguments, log, environment) as process:
        wait_until(lambda: len(read_lines(folder / "updates.jsonl")) >= 1, process, timeout_s=250)
        since = time.monotonic()
        if stop_rank is not None:
            worker = next(p for p in descendants(process) if "TrainWorker" in " ".join(p.cmdline()))
            os.kill(worker.pid, signal.SIGSTOP)
        processes = descendants(process)
        code = process.wait(timeout=120)
        still_s = time.monotonic() - since
        left = still_alive([p for p in processes if psutil.pid_exists(p.pid)], 10)
    return Ended(code, log.read_text(), (folder / "logs/stacks.log").read_text(), still_s, left)


def assert_ended_in_time(ended: Ended) -> None:
    assert ended.code == 1, ended.output
    assert "no sign of life in" in ended.output and "--resume continues" in ended.output
    assert "Traceback" not in ended.output
    assert ended.left == []
    # The step before the stall, and rollout of its own, come on top.
    assert DEADLINE_S + REPORT_AFTER_S < ended.still_s < DEADLINE_S + END_AFTER_S + CLOSE_S + 60


def test_a_rank_that_sleeps_in_the_update_is_named_with_its_stack(tmp_path: Path, warm_model: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLEEPER)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = run_until_it_ends(tmp_path, warm_model, {"PYTHONPATH": path}, None)
    assert_ended_in_time(ended)
    told = ended.output[ended.output.index("no sign of life in TRAIN") :]
    assert told.index("train worker 1") < told.index("train worker 0"), "the culprit comes first"
    assert "fall_asleep" in ended.stacks and "train worker 0" in ended.stacks


def test_a_stopped_train_worker_is_named(tmp_path: Path, warm_model: Path) -> None:
    ended = run_until_it_ends(tmp_path, warm_model, {}, 0)
    assert_ended_in_time(ended)
    assert "it is stopped (kill -CONT lets it go on)" in ended.output
