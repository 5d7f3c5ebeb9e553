"""A run of 3 steps, and the same run while another user attacks every socket that it listens on, from start to end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.security.other_user import ROOT, needs_root
from tests.stack_cpu.command import read_lines, settings, started_train, without_times

pytestmark = [pytest.mark.full, pytest.mark.stack_cpu, pytest.mark.faults, pytest.mark.timeout(900)]

TIMEOUT_S = 400.0
LOOK_S = 0.2
MEMORY_MIB = 50
SHORT: dict[str, Any] = {
    "model__init": "seeded",
    "train__num_steps": 3,
    "train__layout__tp": 1,
    "train__prompts_per_step": 4,
    "reward__num_workers": 1,
    "reward__rules__verifiers__doc-qa": "tests.security.reward_by_length:verify",
    "rollout__start_timeout_s": TIMEOUT_S,
    "eval__num_prompts": 4,
    "checkpoint__every_steps": 3,
}


class Attack:
    """The program of another user, who is told where to go."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.security.attacker"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def go_for(self, addresses: list[str]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{address}\n" for address in addresses))
        self._process.stdin.flush()

    def end(self) -> tuple[int, int]:
        """Sockets that took a connection, and those that refused this user."""
        output, _ = self._process.communicate(timeout=120)
        reached, refused = output.split()
        return int(reached), int(refused)


def run(directory: Path, attack: Attack | None) -> tuple[Path, float]:
    """Folder of a finished run, and the most memory that its driver had, in MiB."""
    directory.mkdir()
    log, peak, until = directory / "output.txt", 0.0, time.monotonic() + TIMEOUT_S
    arguments = settings(ROOT / "configs/models/tiny", directory, **SHORT)
    with started_train(["--set", *arguments], log) as process:
        while process.poll() is None:
            assert time.monotonic() < until, log.read_text()[-3000:]
            peak = max(peak, peak_mib(process.pid))
            if attack is not None:
                attack.go_for(listening(process.pid))
            time.sleep(LOOK_S)
        assert process.returncode == 0, log.read_text()[-3000:]
    return directory / "quickstart", peak


def peak_mib(pid: int) -> float:
    """As the kernel keeps it; 0 for a process that has ended."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def listening(pid: int) -> list[str]:
    """Sockets of this process and all below it in the state LISTEN, as /proc/net has them."""
    try:
        pids = {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    except psutil.NoSuchProcess:
        return []
    inet: list[Any] = [it for it in psutil.net_connections("inet") if it.pid in pids and it.status == "LISTEN"]
    unix = [it for it in psutil.net_connections("unix") if it.pid in pids and str(it.laddr).startswith("/")]
    ports = {f"tcp {it.laddr.ip.removeprefix('::ffff:')}:{it.laddr.port}" for it in inet}
    return sorted(ports | {f"unix {it.laddr}" for it in unix})


@needs_root
def test_an_attacked_run_has_the_records_of_an_undisturbed_one(tmp_path: Path) -> None:
    quiet, quiet_mib = run(tmp_path / "quiet", None)
    attack = Attack()
    attacked, attacked_mib = run(tmp_path / "attacked", attack)
    reached, refused = attack.end()
    assert reached > 10 and refused > 4, "it was attacked in earnest"
    for name in ("completions.jsonl", "metrics.jsonl", "updates.jsonl", "eval_completions.jsonl"):
        assert without_times(read_lines(attacked / name)) == without_times(read_lines(quiet / name)), name
    summary = json.loads((attacked / "summary.json").read_text())
    assert summary["groups"]["trained"] > 0 and summary["policy_version_final"] == 3
    texts = [path.read_text(errors="replace") for path in (attacked / "logs").rglob("*") if path.is_file()]
    texts.append((attacked.parent / "output.txt").read_text())
    assert not [text[-2000:] for text in texts if "Traceback" in text]
    assert abs(attacked_mib - quiet_mib) < MEMORY_MIB, f"{attacked_mib:.0f} MiB, {quiet_mib:.0f} undisturbed"
