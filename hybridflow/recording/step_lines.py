"""Files to which a run appends lines `{"step": ...}`: where those of a step end, found in constant memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from hybridflow.errors import DataError
from hybridflow.reading import Unreadable, iter_lines, parse_json


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, an OSError of a write names the file: the system names it where one is opened only."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def find_end(path: Path, step: int, *, kind: str, every_step: bool = False, through: bool = False) -> int:
    """Bytes of the lines up to `step`; half a line at the end, of a crash, is not among them. 0 where there is no file.

    Args:
        kind: What a line is, for errors: "a completion".
        every_step: Steps follow one another without a hole.
        through: The last of these lines is of `step`, unless the file is empty.

    Raises:
        DataError: a whole line is none of this kind, or steps are missing or out of order. Nothing is changed.
    """
    if not path.exists():
        return 0
    end = place = number = 0
    last: int | None = None
    with path.open("rb") as file:
        for number, line in enumerate(iter_lines(file), start=1):
            if isinstance(line, Unreadable):
                _refuse(path, number, kind, str(line).partition(". Remedy")[0])
            if not line.endswith(b"\n"):
                break
            found = _step_of(path, number, kind, line)
            if last is not None and (found < last or (every_step and found > last + 1)):
                what = "out of order" if found < last else "steps between them are missing"
                _refuse(path, number, kind, f"step {found} follows step {last}: {what}")
            place += len(line)
            last = found
            if found <= step:
                end = place
    if through and last is not None and last < step:
        _refuse(path, number, kind, f"the last step is {last}, the checkpoint is of step {step}: steps are missing")
    return end


def cut(path: Path, end: int) -> None:
    """Drops what is behind `end`."""
    if path.exists() and path.stat().st_size > end:
        os.truncate(path, end)


def _step_of(path: Path, number: int, kind: str, line: bytes) -> int:
    try:
        value = parse_json(line.rstrip(b"\n"), checks_pairs=False)
        step = value["step"]
        if type(step) is int:
            return step
        _refuse(path, number, kind, f"its step is {step!r:.40}")
    except (Unreadable, KeyError, TypeError, IndexError) as error:
        told = "it has no step" if not isinstance(error, Unreadable) else str(error).partition(". Remedy")[0]
        _refuse(path, number, kind, f"{told}: {line[:60]!r}")


def _refuse(path: Path, number: int, kind: str, why: str) -> NoReturn:
    raise DataError(
        f"{path}, line {number}: not {kind} of this run: {why}. Nothing was changed. Remedy: put back or remove the "
        f"line; or move the file away (mv {path} {path}.kept), and the run goes on in a new one"
    )
