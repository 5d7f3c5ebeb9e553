"""A limit that the system does not grant is named with its remedy, in a second and before Ray."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybridflow.cluster.limits import NEEDED_FILES, check_address, check_files, check_shared_memory, find_problems

PROGRAM = """
import sys
from hybridflow.cluster.limits import find_problems
problems = list(find_problems())
assert not {"ray", "torch"} & set(sys.modules)
print("\\n".join(problems))
"""


@pytest.fixture
def listening() -> Iterator[int]:
    """A port of the loopback that answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_cluster_that_answers_is_fine_and_one_that_does_not_is_named_at_once(listening: int) -> None:
    assert list(check_address(f"127.0.0.1:{listening}")) == []
    assert list(check_address("auto")) == []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
        started = time.monotonic()
        (told,) = check_address(f"127.0.0.1:{closed}")
    assert time.monotonic() - started < 5
    assert told.startswith(f"RAY_ADDRESS = 127.0.0.1:{closed}: nothing answers there within 3 s (")
    assert "Remedy: unset RAY_ADDRESS" in told


@pytest.mark.parametrize("address", ["nonsense", "host:", ":6379", "host:port"])
def test_an_address_that_cannot_be_read(address: str) -> None:
    (told,) = check_address(address)
    assert told.startswith(f"RAY_ADDRESS = {address!r} is no host:port. Remedy: unset")


def test_open_files() -> None:
    assert list(check_files(NEEDED_FILES)) == list(check_files(resource.RLIM_INFINITY)) == []
    (told,) = check_files(256)
    assert told.startswith("a process may have 256 open files (ulimit -n), and 512 are needed. Remedy: ulimit -n 65536")


def test_shared_memory() -> None:
    assert list(check_shared_memory(2**30, 2**30)) == []
    (told,) = check_shared_memory(2**19, 2**26)
    assert told.startswith("/dev/shm has 0.5 MiB free of 64, and 16 MiB are needed")
    assert "--shm-size=1g" in told


def test_all_that_is_wrong_with_a_process_is_said_together(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    environment = os.environ | {"TMPDIR": str(long), "RAY_ADDRESS": ""}
    command = ["bash", "-c", f"ulimit -n 100; exec {sys.executable} -c '{PROGRAM}'"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"TMPDIR is {long}", lines[1].partition(":")[0]], done.stderr
    assert "100 open files (ulimit -n)" in lines[1]


def test_this_machine_has_enough() -> None:
    assert list(find_problems()) == []
