"""Files of killed processes in /dev/shm go with them; what others use stays."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

from hybridflow.guard.left_behind import SHARED_MEMORY
from hybridflow.runtime.teardown import removed_with_processes

HOLD = """
import mmap, multiprocessing, sys, time
lock = multiprocessing.get_context("spawn").Lock()
print("/dev/shm/sem." + lock._semlock.name.lstrip("/"), flush=True)
for path in sys.argv[1:]:
    file = open(path, "w+b")
    file.truncate(4096)
    kept = mmap.mmap(file.fileno(), 4096)
    globals()[path] = kept
print("ready", flush=True)
time.sleep(600)
"""


def test_files_of_children_are_removed_and_no_others() -> None:
    suffix = secrets.token_hex(6)
    own, unknown, foreign = (SHARED_MEMORY / f"{name}{suffix}" for name in ("sglang_loads_", "other_", "sem.mp-"))
    foreign.write_text("")
    # A grandchild, as SGLang's schedulers are.
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}, *sys.argv[1:]])"
    child = subprocess.Popen([sys.executable, "-c", start, own, unknown], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        semaphore = Path(child.stdout.readline().strip())
        assert child.stdout.readline() == "ready\n" and semaphore.exists()
        with removed_with_processes():
            subprocess.run(["pkill", "-KILL", "-P", str(child.pid)], check=True)
            child.wait()
        assert [path.exists() for path in (own, unknown, foreign)] == [False, True, True]
        assert not semaphore.exists(), "which the process had mapped under another name"
    finally:
        child.kill()
        for path in (own, unknown, foreign):
            Path(path).unlink(missing_ok=True)
