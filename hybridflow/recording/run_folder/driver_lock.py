"""One driver per run folder: a lock beside it, with the name of who holds it.

The lock is the file `<run.directory>/.<run.name>.lock`, held by flock for as long as the driver lives, so that on one
machine no lock outlives its process, however that ended; who takes one over clears what that process left. A file
system may not carry flock between machines: there the holder touches the file each BEAT_S, and one of another machine
that was not touched for SILENT_S is stale.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from hybridflow.errors import ConfigError
from hybridflow.guard.left_behind import clear
from hybridflow.private_folder import MARK
from hybridflow.reading import Unreadable, parse_json

BEAT_S = 15.0
SILENT_S = 120.0


class DriverLock:
    """Held by the one process that works on a run folder; as a context manager, from `__enter__` to `__exit__`."""

    def __init__(self, run: Path) -> None:
        """`run` is the run folder, whether it exists or not."""
        self._run = run
        self.path = run.with_name(f".{run.name}.lock")
        self._stream: IO[str] | None = None
        self._released = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="driver lock", daemon=True)

    def check(self) -> None:
        """Raises ConfigError, naming the holder, if another process works on the run; leaves no trace."""
        try:
            is_there = self.path.exists()
        except OSError as error:  # no path of this length, or links in a circle
            raise self._cannot_lock(error) from error
        if is_there:
            with DriverLock(self._run):
                pass

    def __enter__(self) -> DriverLock:
        """Takes the lock. Raises ConfigError if another process holds it, or the folder cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._take()
        except OSError as error:
            raise self._cannot_lock(error) from error
        self._beats.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._beats.join()
        assert self._stream is not None
        self.path.unlink(missing_ok=True)  # before the lock is given up: who takes it then finds that the file is gone
        self._stream.close()

    def _take(self) -> IO[str]:
        while True:
            stream = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+")
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with stream:
                    raise self._refusal(_read_holder(stream)) from None
            holder = _read_holder(stream)
            if not _is_still(self.path, stream):
                stream.close()
            elif holder.get("host") not in (None, socket.gethostname()) and _age_s(stream) < SILENT_S:
                stream.close()
                raise self._refusal(holder)
            else:
                _clear_behind(holder)
                _write_holder(stream)
                return stream

    def _cannot_lock(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"cannot lock the run folder {self._run}: {error.strerror or error}. Remedy: set run.directory and "
            "run.name to a folder that can be written"
        )

    def _refusal(self, holder: dict[str, Any]) -> ConfigError:
        pid, host, since, command = (holder.get(name, "?") for name in ("pid", "host", "started", "command"))
        return ConfigError(
            f"process {pid} on {host} has been working on the run {self._run} since {since}: {command}\n"
            f"Wait until it ends, end it (Ctrl-C, or `kill {pid}` on {host}), or start another run with "
            f"--set run.name=...\n"
            f"If that process is gone, {host} was lost: delete {self.path}, or wait {SILENT_S:.0f} s"
        )

    def _beat(self) -> None:
        """Consumes nothing; touches the lock until it is released."""
        while not self._released.wait(BEAT_S):
            assert self._stream is not None
            os.utime(self._stream.fileno())


def _read_holder(stream: IO[str]) -> dict[str, Any]:
    """Who wrote the file; nothing where it is empty or no JSON."""
    try:
        holder = parse_json(stream.read(65_536))
    except Unreadable:
        return {}
    return holder if isinstance(holder, dict) else {}


def _clear_behind(holder: dict[str, Any]) -> None:
    """Ends and removes what is left of a driver of this machine that was killed: one that ends removes its lock."""
    temporary, since = holder.get("temporary"), holder.get("since")
    if holder.get("host") == socket.gethostname() and isinstance(temporary, str) and isinstance(since, float):
        clear(Path(temporary), since)


def _write_holder(stream: IO[str]) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(sys.argv),
        "temporary": os.environ.get(MARK),
        "since": time.time(),
    }
    stream.seek(0)
    stream.truncate()
    stream.write(json.dumps(holder) + "\n")
    stream.flush()


def _is_still(path: Path, stream: IO[str]) -> bool:
    """Whether the file that was locked is the one that `path` names: its last holder may have removed it."""
    try:
        return os.stat(path).st_ino == os.fstat(stream.fileno()).st_ino
    except FileNotFoundError:
        return False


def _age_s(stream: IO[str]) -> float:
    return time.time() - os.fstat(stream.fileno()).st_mtime
