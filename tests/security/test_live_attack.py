"""A run of 3 steps, and the same run while another user attacks every socket that it listens on.

The attacker knows all ports and paths, and how each part speaks: he sends random bytes, well-formed messages of the
reward stream, gloo's and torch's greetings of a rank that joins, HTTP and gRPC, again and again until the run ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.security.other_user import BECOME_NOBODY, ROOT, needs_root
from tests.stack_cpu.command import read_lines, settings, started_train, without_times

pytestmark = [pytest.mark.full, pytest.mark.stack_cpu, pytest.mark.faults, pytest.mark.timeout(1500)]

TIMEOUT_S = 600.0
LOOK_S = 0.2

ATTACKER = """
import encodings.idna, random, socket, struct, sys, time, zmq
import zmq.backend.cython
from hybridflow.types import Completion, Scored
from hybridflow.wire.codec import encode
from hybridflow.wire.messages import Bye, Finished, Hello, Ready, ScoreReply
from hybridflow.wire.packed import pack_completion
"""
ATTACK = """
rng = random.Random(0)
done = Completion(completion_id="t00001-g0000-c00", group_id="t00001-g0000", prompt_id="train-000000", index=0,
                  token_ids=[5], rollout_logprobs=[-1.0], text="The answer is yen.", finish_reason="stop",
                  policy_version=0, prompt_tokens=1, cached_tokens=0)
good = Scored(value=1.0, rule="r", extracted="e", why="mine")
messages = [encode(m) for m in (Ready("reward-0", 64), ScoreReply("t00001-g0000-c00", good), Bye(),
                                Finished("engine-0", 1, pack_completion(done), 1), Hello("engine-0", 1))]
raw = [
    lambda: rng.randbytes(4096),
    lambda: b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n",
    lambda: b"POST /api/job_agent/jobs/ HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 2\\r\\n\\r\\n{}",
    lambda: b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes(9),
    lambda: struct.pack("<q", rng.randrange(64)) + b"\\x00" * 64,
    lambda: b"\\x00" + struct.pack("<I", 0x3C85F7CE) + b"\\x09" + rng.randbytes(64),
]
context = zmq.Context()
reached, refused, open_sockets = set(), set(), []
for line in sys.stdin:
    kind, address = line.rstrip("\\n").split(" ", 1)
    try:
        if kind == "unix":
            peer = socket.socket(socket.AF_UNIX)
            peer.settimeout(1)
            peer.connect(address)
            peer.send(rng.randbytes(4096))
            reached.add(address)
            continue
        host, port = address.rsplit(":", 1)
        for make in raw:
            with socket.create_connection((host, int(port)), timeout=1) as peer:
                peer.sendall(make())
        reached.add(address)
    except PermissionError:
        refused.add(address)
        continue
    except OSError:
        continue
    peer = context.socket(zmq.DEALER)
    peer.setsockopt(zmq.LINGER, 0)
    peer.connect("tcp://" + address)
    for message in messages:
        try:
            peer.send(message, zmq.NOBLOCK)
        except zmq.Again:
            pass
    open_sockets.append(peer)
    while len(open_sockets) > 50:
        open_sockets.pop(0).close()
print(len(reached), len(refused))
"""


class Attacker:
    """Another user, who is told where to go."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"{ATTACKER}\n{BECOME_NOBODY}\n{ATTACK}"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def attack(self, addresses: list[str]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{address}\n" for address in addresses))
        self._process.stdin.flush()

    def end(self) -> tuple[int, int]:
        """Ports that took a connection; sockets that refused it to this user."""
        output, _ = self._process.communicate(timeout=60)
        reached, refused = output.split()
        return int(reached), int(refused)


def run(directory: Path, attacker: Attacker | None) -> tuple[Path, int]:
    """Folder of a finished run, and the most memory that its driver had."""
    changes: dict[str, Any] = {"train__num_steps": 3, "model__init": "seeded", "rollout__start_timeout_s": TIMEOUT_S}
    given = settings(ROOT / "configs/models/tiny", directory, **changes)
    arguments = ["--set", *[value for value in given if not value.startswith("warmup.")]]
    log, peak, until = directory / "output.txt", 0, time.monotonic() + TIMEOUT_S
    with started_train(arguments, log) as process:
        driver = psutil.Process(process.pid)
        while process.poll() is None:
            assert time.monotonic() < until, log.read_text()[-3000:]
            try:
                peak = max(peak, driver.memory_info().rss)
                if attacker is not None:
                    attacker.attack(listening([driver, *driver.children(recursive=True)]))
            except psutil.Error:
                pass  # one of them has just ended
            time.sleep(LOOK_S)
        assert process.returncode == 0, log.read_text()[-3000:]
    return directory / "quickstart", peak


def listening(processes: list[psutil.Process]) -> list[str]:
    """Sockets of these processes in the state LISTEN, as /proc/net has them."""
    found: list[str] = []
    for process in processes:
        try:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.append(f"tcp {connection.laddr.ip.removeprefix('::ffff:')}:{connection.laddr.port}")
            found += [f"unix {it.laddr}" for it in process.net_connections("unix") if str(it.laddr).startswith("/")]
        except psutil.Error:
            continue
    return sorted(set(found))


@needs_root
def test_an_attacked_run_has_the_records_of_an_undisturbed_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    quiet, quiet_peak = run(tmp_path / "a", None)
    attacker = Attacker()
    attacked, attacked_peak = run(tmp_path / "b", attacker)
    reached, refused = attacker.end()
    assert reached > 10 and refused > 4, "it was attacked in earnest"
    for name in ("completions.jsonl", "metrics.jsonl", "eval_completions.jsonl"):
        assert without_times(read_lines(attacked / name)) == without_times(read_lines(quiet / name)), name
    assert json.loads((attacked / "summary.json").read_text())["status"] == "finished"
    texts = [path.read_text(errors="replace") for path in (attacked / "logs").iterdir()]
    texts.append((tmp_path / "b" / "output.txt").read_text())
    assert not [text[-2000:] for text in texts if "Traceback" in text]
    assert abs(attacked_peak - quiet_peak) < 50 * 2**20, f"{attacked_peak / 2**20:.0f} MiB, {quiet_peak / 2**20:.0f}"
