"""A folder that no other user of this machine may enter, for the sockets, keys and rendezvous files of one run.

Whoever may enter it may speak to the run, so it stands for a key: mode 0700, in the system's folder for temporary
files, and gone when the run ends. What a driver leaves that was killed is removed by the next one.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from hybridflow.errors import ConfigError

PREFIX = "hyfl-"
"""Short: a socket may have few letters in its name, and Ray takes most of them."""
MAX_SOCKET_PATH_BYTES = 107
"""Longest name of a socket that the kernel takes."""
CLOSE_TRIES = 30
YOUNG_S = 60.0
"""A folder may be without its lock so long after it was made."""
MARK = "HYBRIDFLOW_TEMPORARY"
"""Variable with the path of the private folder that all temporary files of a run are in, see `guard`."""
LONGEST_RAY_SOCKET = len("r/session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store")
LONGEST_SOCKET = len("0/") + LONGEST_RAY_SOCKET
"""Below the folder of a run: Ray's is in a folder there."""


class PrivateFolder:
    """Made on construction; `close` removes it with all that is in it.

    Args:
        longest_name: Length of the longest path below it that is to be a socket.

    Raises:
        ConfigError: with that name the path of a socket would be too long, or the folder cannot be made.
    """

    def __init__(self, longest_name: int = 20) -> None:
        parent = Path(tempfile.gettempdir())
        is_private = parent.is_relative_to(os.environ.get(MARK) or "/-")
        check_length(parent / ("0" if is_private else f"{PREFIX}12345678"), longest_name)
        try:
            if is_private:
                self.path = _make_short(parent)
            else:
                for abandoned in find_abandoned(parent):
                    shutil.rmtree(abandoned, ignore_errors=True)
                self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # of mode 0700, whatever the umask
        except OSError as error:
            raise ConfigError(f"TMPDIR is {parent}: {error}. Remedy: set TMPDIR to a folder of this machine") from error
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """May be called twice."""
        if self._lock >= 0:
            for _ in range(CLOSE_TRIES):  # processes that are ending may still write something of their own
                shutil.rmtree(self.path, ignore_errors=True)
                if not self.path.exists():
                    break
                time.sleep(0.1)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> PrivateFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_length(folder: Path, longest_name: int) -> None:
    """Raises ConfigError where a socket with a name of that length in `folder`, below TMPDIR, could not be made."""
    length = len(os.fsencode(folder)) + 1 + longest_name
    if length > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"TMPDIR is {tempfile.gettempdir()}: a socket below it would have a name of {length} bytes, and the system "
            f"takes {MAX_SOCKET_PATH_BYTES}. Remedy: set TMPDIR to a shorter path on this machine, such as /tmp"
        )


def _make_short(parent: Path) -> Path:
    """A new folder of mode 0700 in one that is private already: nobody else makes names there, so short ones do."""
    for number in itertools.count():
        with suppress(FileExistsError):
            path = parent / str(number)
            path.mkdir(mode=0o700)
            return path
    raise AssertionError


def write_secret(path: Path, text: str) -> None:
    """A new file of mode 0600, whatever the umask. FileExistsError where there is one, a link included."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)


def find_abandoned(parent: Path) -> Iterator[Path]:
    """Folders of this user in `parent` whose owner does not live any more: nobody holds their lock."""
    for path in parent.glob(f"{PREFIX}????????"):
        with suppress(OSError):  # it is gone, held, or not ours
            found = path.lstat()
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if not is_ours or time.time() - found.st_mtime < YOUNG_S:
                continue
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(lock)
            yield path
