"""One start of `hybridflow train`, what it says, the processes that it ever had, and what is left of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from hybridflow.guard.left_behind import PREFIXES, SHARED_MEMORY, shared_memory_of

ROOT = Path(__file__).parents[2]
GRACE_S = 5.0
"""After the end of a run, until nothing of it may be left."""


class Attempt:
    """A start, or a resume, of the run in `directory`; used as a context manager.

    Args:
        log: What it says goes there: on another disk than `directory`, which may be full.
        temporary: TMPDIR of the run, used by nothing else.
    """

    def __init__(self, config: Path, directory: Path, log: Path, temporary: Path, *, resume: bool) -> None:
        self.log = log
        self.runs = directory / "runs"
        self._temporary = temporary
        self.since = time.time()
        directory.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "hybridflow.cli", "train"]
        command += ["--config", str(ROOT / "configs/quickstart.toml"), str(config), *(["--resume"] * resume)]
        command += ["--set", f'run.directory="{self.runs}"']
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"TMPDIR": str(temporary)},
            )
        self.first = psutil.Process(self.process.pid)
        self._seen: set[psutil.Process] = set()
        self._is_over = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()  # its guardian ends the others
            self.process.wait()
        self._is_over.set()
        self._watching.join()

    def said(self, since: int = 0) -> str:
        """Its output from that byte on."""
        return self.log.read_bytes()[since:].decode(errors="replace")

    def wait(self, timeout_s: float) -> int | None:
        """Exit code; None where it has not ended by then."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def remove_leftovers(self) -> list[str]:
        """Remains of the run GRACE_S after its end: processes, files in TMPDIR and /dev/shm. All is removed."""
        deadline = time.monotonic() + GRACE_S
        while (left := self._living()) and time.monotonic() < deadline:
            time.sleep(0.1)
        told = [f"process {process.pid} {_describe(process)}" for process in left]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        files = [*self._temporary.iterdir(), *self._shared_memory()]
        for path in files:
            subprocess.run(["rm", "-rf", str(path)], check=True)
        return told + [str(path) for path in files]

    def _watch(self) -> None:
        while not self._is_over.wait(0.3):
            with suppress(psutil.NoSuchProcess):
                self._seen.update(self.first.children(recursive=True))

    def _living(self) -> list[psutil.Process]:
        """Processes that were ever below the first one, or have the folder for temporary files in their environment."""
        mark = f"TMPDIR={self._temporary}".encode()
        marked: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(OSError):
                if mark in Path(f"/proc/{process.pid}/environ").read_bytes():
                    marked.append(process)
        found = {*self._seen, *marked} - {psutil.Process()}
        return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]

    def _shared_memory(self) -> list[Path]:
        """Files of libraries there, made during the run, that no process has mapped or open."""
        made = [path for path in SHARED_MEMORY.iterdir() if path.name.startswith(PREFIXES)]
        used = {inode for process in psutil.process_iter() for inode in shared_memory_of(Path(f"/proc/{process.pid}"))}
        left: list[Path] = []
        for path in made:
            with suppress(FileNotFoundError):  # another run's, that removed it
                found = path.lstat()
                if found.st_ctime >= self.since and found.st_ino not in used:
                    left.append(path)
        return left


def _describe(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:60] or process.name()
    except psutil.Error:
        return "(ended meanwhile)"
