"""The worked example, docs/example.md: its files and commands, as they stand there."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.ports import free_port

ROOT = Path(__file__).parents[2]
PORT = "30000"
"""Port of the judge in the text."""
START_S = 30.0


class Example:
    """In a folder of its own.

    Args:
        folder: Takes the place of a clone: `configs` is there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        text = (ROOT / "docs/example.md").read_text(encoding="utf-8")
        self.port = str(free_port())
        blocks = re.findall(r"```(\w+)\n(.*?)```", text.replace(PORT, self.port), re.DOTALL)
        self.commands = [line for kind, body in blocks if kind == "bash" for line in body.splitlines()]
        (folder / "configs").symlink_to(ROOT / "configs")
        for _, body in blocks:
            if named := re.match(r"# (example/\S+)\n", body):
                path = folder / named[1]
                path.parent.mkdir(exist_ok=True)
                path.write_text(body, encoding="utf-8")

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """A command that ends in `&`: the judge. Returns when it listens."""
        words = self.words(command.removesuffix("&"))
        process = subprocess.Popen(words, cwd=self.folder)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(self.port))) == 0:
                    return process
            time.sleep(0.05)
        process.kill()
        raise AssertionError(f"{command} does not listen")

    def run(self, command: str) -> str:
        """Output of a command that must succeed."""
        shell = re.sub(r"^\.venv/bin/python\b", shlex.quote(sys.executable), command)
        shell = re.sub(r"^\.venv/bin/hybridflow\b", f"{shlex.quote(sys.executable)} -m hybridflow.cli", shell)
        done = subprocess.run(shell, shell=True, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def words(self, command: str) -> list[str]:
        return [sys.executable if word == ".venv/bin/python" else word for word in shlex.split(command)]
