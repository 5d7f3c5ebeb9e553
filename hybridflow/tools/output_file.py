"""The output of a command: one line per row, continued after an interruption, never mixed or lost.

Beside `<output>` stands `<output>.meta.json`, which says what the lines were made from.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hybridflow.errors import ConfigError
from hybridflow.reading import Unreadable, read_json


class OutputFile:
    """Lines of one job in `path`."""

    def __init__(self, path: Path, **sources: Path) -> None:
        """ConfigError for a path that cannot be the output of these inputs, by option; writes nothing."""
        self.path = path
        self._marker = path.with_name(path.name + ".meta.json")
        if path.is_dir():
            raise ConfigError(f"--output {path} is a directory. Name a file in it, such as {path / 'output.jsonl'}")
        for option, source in sources.items():
            if path.exists() and source.exists() and path.samefile(source):
                raise ConfigError(f"--output {path} is the file of --{option}. Name another one")

    def resume(self, job: dict[str, Any], *, overwrite: bool) -> tuple[int, Path | None]:
        """How many rows of `job` are there already, after a half-written line is cut off.

        Lines of another job, or of nobody knows what, are kept under another name, which is returned too. With
        `overwrite` what is there is removed. ConfigError if the file system refuses.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            moved = None
            if overwrite:
                self.path.unlink(missing_ok=True)
            elif self.path.exists() and self.path.stat().st_size and self._read_marker() != job:
                moved = self._move_away()
            if self._read_marker() != job:
                self._write_marker(job)
            self.path.touch()
            return _keep_whole_lines(self.path), moved
        except OSError as error:
            raise ConfigError(f"--output {self.path} cannot be written: {error}. Name another file") from error

    def _read_marker(self) -> Any:
        """None where there is none, or none that can be read: then nobody knows what the lines are."""
        try:
            return read_json(self._marker)
        except (FileNotFoundError, Unreadable):
            return None

    def _write_marker(self, job: dict[str, Any]) -> None:
        """Whole or not at all: without it nobody knows what the lines are."""
        part = self._marker.with_name(self._marker.name + ".part")
        try:
            part.write_text(json.dumps(job, indent=1) + "\n")
            part.replace(self._marker)
        finally:
            part.unlink(missing_ok=True)

    def _move_away(self) -> Path:
        number = 1
        while (moved := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        self.path.rename(moved)
        if self._marker.exists():
            self._marker.rename(moved.with_name(moved.name + ".meta.json"))
        return moved


def fingerprint(hf_dir: Path) -> str:
    """Changes when config or weights of a model directory do; from sizes and times, without reading weights."""
    digest = hashlib.sha256((hf_dir / "config.json").read_bytes())
    for path in sorted(hf_dir.glob("*.safetensors")):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _keep_whole_lines(path: Path) -> int:
    """Cuts off what follows the last line end, and counts the lines."""
    count, end = 0, 0
    with path.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            count, end = count + 1, end + len(line)
        file.truncate(end)
    return count
