"""Runs a program as another user of this machine, where the tests run as root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = 65_534
BECOME_NOBODY = f"import os; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); os.chdir('/')"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def run_as_nobody(imports: str, program: str, *arguments: str, timeout_s: float = 120.0) -> tuple[int, str]:
    """(exit code, output) of Python code that runs as user `nobody`, without this process's environment.

    It imports first, as that user may not be able to read this interpreter's libraries.
    """
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}\n{BECOME_NOBODY}\n{program}", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return done.returncode, done.stdout
