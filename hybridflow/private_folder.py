"""A folder that no other user of this machine may enter, for the sockets, keys and rendezvous files of one run.

Whoever may enter it may speak to the run, so it stands for a key: mode 0700, in the system's folder for temporary
files, and gone when the run ends. What a driver leaves that was killed is removed by the next one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from hybridflow.errors import ConfigError

PREFIX = "hyfl-"
"""Short: a socket may have few letters in its name, and Ray takes most of them."""
MAX_SOCKET_PATH_BYTES = 107
"""What the kernel takes as name of a socket."""
CLOSE_TRIES = 30
YOUNG_S = 60.0
"""A folder may be without its lock so long after it was made."""


class PrivateFolder:
    """Made on construction; `close` removes it with all that is in it.

    Args:
        longest_name: Length of the longest path below it that is to be a socket.

    Raises:
        ConfigError: with that name the path of a socket would be too long, or the folder cannot be made.
    """

    def __init__(self, longest_name: int = 20) -> None:
        parent = Path(tempfile.gettempdir())
        length = len(os.fsencode(parent / f"{PREFIX}12345678")) + 1 + longest_name
        if length > MAX_SOCKET_PATH_BYTES:
            raise ConfigError(
                f"TMPDIR is {parent}: a socket below it would have a name of {length} bytes, and the system takes "
                f"{MAX_SOCKET_PATH_BYTES}. Remedy: set TMPDIR to a shorter path on this machine, such as /tmp"
            )
        _remove_abandoned(parent)
        try:
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


def write_secret(path: Path, text: str) -> None:
    """A new file of mode 0600, whatever the umask. FileExistsError where there is one, a link included."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)


def _remove_abandoned(parent: Path) -> None:
    """Removes folders of this user whose owner does not live any more: nobody holds their lock."""
    for path in parent.glob(f"{PREFIX}????????"):
        with suppress(OSError):  # another driver was faster, or it is not ours
            found = path.lstat()
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if not is_ours or time.time() - found.st_mtime < YOUNG_S:
                continue
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
