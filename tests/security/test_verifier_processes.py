"""Processes of a verifier end with its scoring process, and none of its user's secrets is in its environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from hybridflow.reward_service.sandbox.process_scorer import ProcessScorer
from hybridflow.reward_service.sandbox.protocol import Limits, Setup
from hybridflow.types import Scored, ScoreRequest

WAIT_S = 60.0
VERIFIERS = """
import json, os, signal, subprocess, sys, time
from hybridflow.types import Scored

def build():
    return verify

def start_all():
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pids = [subprocess.Popen(sleep, **quiet).pid]                                   # a child
    pids.append(subprocess.Popen(sleep, start_new_session=True, **quiet).pid)       # outside of the group
    pids.append(subprocess.Popen(sleep, env={}, start_new_session=True, **quiet).pid)
    reads, writes = os.pipe()
    if os.fork() == 0:                                                              # a daemon: its parent is gone
        os.setsid()
        pid = os.fork()
        if pid:
            os.write(writes, str(pid).encode())
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    pids.append(int(os.read(reads, 20)))
    return pids

def verify(request):
    if request.text == "environment":
        return Scored(value=1.0, rule="r", extracted="", why=json.dumps(dict(os.environ)))
    with open(request.ground_truth, "w") as file:
        json.dump(start_all(), file)
    if request.text == "exit":
        os._exit(0)
    if request.text == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if request.text == "loop":
        while True:
            pass
    return Scored(value=1.0, rule="r", extracted="", why="")
"""


@pytest.fixture(autouse=True)
def _verifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "verifiers_with_children.py").write_text(VERIFIERS)
    monkeypatch.syspath_prepend(str(tmp_path))


def start(**environment: str) -> ProcessScorer:
    limits = Limits(cpu_s=1.0, wall_s=WAIT_S, memory_mib=1024)
    return ProcessScorer(Setup(build_verify="verifiers_with_children:build", limits=limits, environment=environment))


def submit(scorer: ProcessScorer, text: str, gold: str = "") -> None:
    scorer.submit(ScoreRequest(completion_id="c", data_source="", ability="", ground_truth=gold, text=text))


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def pids_in(file: Path) -> list[int]:
    wait_for(lambda: file.exists() and file.read_text().endswith("]"))
    return json.loads(file.read_text())


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("end", ["exit", "killed", "loop", "close"])
def test_nothing_that_a_verifier_started_survives_its_process(tmp_path: Path, end: str) -> None:
    scorer, file = start(), tmp_path / "pids"
    submit(scorer, end, str(file))
    scorer.take_verdicts()
    pids = pids_in(file)
    assert len(pids) == 4
    if end in ("exit", "killed", "loop"):
        wait_for(lambda: bool(scorer.take_verdicts()))
    scorer.close()

    wait_for(lambda: all(is_gone(pid) for pid in pids))


def test_nor_the_death_of_the_worker(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(file)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    pids = pids_in(file)
    worker.send_signal(signal.SIGKILL)
    worker.wait()

    wait_for(lambda: all(is_gone(pid) for pid in pids))


WORKER = """
import sys, time
from hybridflow.reward_service.sandbox.protocol import Limits, Setup
from hybridflow.reward_service.sandbox.process_scorer import ProcessScorer
from hybridflow.types import ScoreRequest
scorer = ProcessScorer(Setup(build_verify="verifiers_with_children:build", limits=Limits(memory_mib=1024)))
scorer.submit(ScoreRequest(completion_id="c", data_source="", ability="", ground_truth=sys.argv[1], text="children"))
while True:
    scorer.take_verdicts()
    time.sleep(0.05)
"""


def test_a_verifier_sees_no_secret_but_those_named_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"HF_TOKEN": "hf", "WANDB_API_KEY": "w", "OPENAI_API_KEY": "o", "RAY_AUTH_TOKEN": "r", "AN_UNKNOWN": "u"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    scorer = start(MY_VERIFIER_TOKEN="mine")
    submit(scorer, "environment")
    verdicts: list[tuple[object, object]] = []
    wait_for(lambda: bool(verdicts.extend(scorer.take_verdicts()) or verdicts))
    scorer.close()
    ((_, verdict),) = verdicts
    assert isinstance(verdict, Scored)
    seen = json.loads(verdict.why)

    assert not set(secrets) & set(seen)
    assert (seen["MY_VERIFIER_TOKEN"], seen["OMP_NUM_THREADS"], seen["PATH"]) == ("mine", "1", os.environ["PATH"])
