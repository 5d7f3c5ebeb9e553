"""Limits that the system must grant before Ray and its workers are started: looked at in a second, without Ray.

Each of these shows otherwise minutes later, or in the words of whichever library met it first.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hybridflow.environment import joined_cluster
from hybridflow.errors import ConfigError, PlacementError
from hybridflow.private_folder import LONGEST_SOCKET, MARK, PREFIX, check_length

NEEDED_FILES = 512
"""Open files of one process. Measured on a CPU: up to 140, of a train worker; more with more peers."""
NEEDED_SHARED_BYTES = 16 * 2**20
"""Semaphores and load reports of SGLang; Ray's object store goes to the disk where it does not fit."""
SHARED_MEMORY = "/dev/shm"
REACH_S = 3.0
MIB = 2**20
_NOT_A_HOST = ("auto", "local")
"""Values of RAY_ADDRESS that Ray resolves on this machine."""


def refuse_limits() -> None:
    """Raises PlacementError with everything that is found, or ConfigError of the environment."""
    if problems := list(find_problems()):
        raise PlacementError("\n".join(problems))


def find_problems() -> Iterator[str]:
    """Problems that would stop a start here, each with its remedy."""
    address = joined_cluster()
    yield from _check_temporary(is_private=not address)
    if address:
        yield from check_address(address)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield from check_files(hard)
    usage = shutil.disk_usage(SHARED_MEMORY) if Path(SHARED_MEMORY).is_dir() else None
    if usage is not None:
        yield from check_shared_memory(usage.free, usage.total)


def _check_temporary(*, is_private: bool) -> Iterator[str]:
    """Check the folder for temporary files; below a guardian it was looked at before that began."""
    if not is_private or os.environ.get(MARK):
        return
    try:
        check_length(Path(tempfile.gettempdir()) / f"{PREFIX}12345678", LONGEST_SOCKET)
    except ConfigError as error:
        yield str(error)


def check_address(address: str) -> Iterator[str]:
    """RAY_ADDRESS can be read, and something answers there within REACH_S."""
    if address in _NOT_A_HOST:
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    remedy = "Remedy: unset RAY_ADDRESS to run on this machine alone, or name the head node of a cluster that runs"
    if not host or not port.isdecimal():
        yield f"RAY_ADDRESS = {address!r} is no host:port. {remedy}, such as 10.1.0.5:6379"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except (OSError, OverflowError) as error:
        yield f"RAY_ADDRESS = {address}: nothing answers there within {REACH_S:g} s ({error}). {remedy}"


def check_files(hard: int) -> Iterator[str]:
    """`hard`: the limit on open files up to which a process may raise its own; Ray does that."""
    if hard != resource.RLIM_INFINITY and hard < NEEDED_FILES:
        yield (
            f"a process may have {hard} open files (ulimit -n), and {NEEDED_FILES} are needed. Remedy: ulimit -n 65536 "
            f"before the start; where the system refuses, raise `nofile` in /etc/security/limits.conf, or docker run "
            f"--ulimit nofile=65536"
        )


def check_shared_memory(free: int, total: int) -> Iterator[str]:
    """Bytes of /dev/shm."""
    if free < NEEDED_SHARED_BYTES:
        yield (
            f"{SHARED_MEMORY} has {free / MIB:.1f} MiB free of {total / MIB:.0f}, and {NEEDED_SHARED_BYTES / MIB:.0f} "
            f"MiB are needed for semaphores and memory that processes share. Remedy: remove what ended programs left "
            f"there (ls -l {SHARED_MEMORY}), or make it larger: mount -o remount,size=1g {SHARED_MEMORY}, or docker "
            f"run --shm-size=1g"
        )
