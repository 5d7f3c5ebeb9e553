"""Records of a row file, one at a time, before anything is asked of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hybridflow.data.files import PARQUET, find_files
from hybridflow.errors import DataError
from hybridflow.reading import Unreadable


class Record(NamedTuple):
    """One row as it is there."""

    where: str
    """File and row, for errors."""
    value: Any
    """None where it cannot be read."""
    problem: str = ""
    """Why it cannot be read: its row alone is lost."""


def iter_records(path: str | Path, columns: Sequence[str]) -> Iterator[Record]:
    """All records of a file, a folder or a pattern, in order. Of Parquet, only `columns` are read.

    Raises DataError for a file that is missing, or malformed as a whole.
    """
    for file in find_files(path):
        yield from iter_file_records(file, columns)


def iter_file_records(file: Path, columns: Sequence[str] | None) -> Iterator[Record]:
    """Records of one file; `columns` None: with all columns."""
    from hybridflow.data.json_records import iter_json
    from hybridflow.data.parquet_records import iter_parquet

    try:
        yield from iter_parquet(file, columns) if file.name.lower().endswith(PARQUET) else iter_json(file)
    except (Unreadable, OSError) as error:
        raise DataError(f"{file}: {error}") from error


def refuse_problems(path: str | Path, problems: Sequence[str], num_rows: int, shown: int = 10) -> None:
    """Raises DataError that names the first problems and counts all; returns where there is none."""
    if not problems:
        return
    if len(problems) == 1:
        raise DataError(problems[0])
    more = f"\n  and {len(problems) - shown} more" if len(problems) > shown else ""
    lines = "".join(f"\n  {problem}" for problem in problems[:shown])
    raise DataError(f"{path}: {len(problems)} of {num_rows} rows cannot be used:{lines}{more}")
