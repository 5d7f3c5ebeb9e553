"""Row files: Parquet (as DocQA-RL-1.6K is published) and JSON, one object per line or one list.

A survey says of a data file, before anything starts, which of its rows cannot be used.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hybridflow.data.files import JSON_SUFFIXES, PARQUET, find_files
from hybridflow.data.parquet_records import read_column_names
from hybridflow.data.records import Record, iter_records, refuse_problems
from hybridflow.data.schema import COLUMNS, BadRow, Row, check_columns, parse_row, to_record
from hybridflow.errors import DataError
from hybridflow.reading import Unreadable

__all__ = ["Row", "load_rows", "read_rows", "stream_rows", "write_rows"]

MOST_BAD_ROWS = 10_000
"""So many first rows of which none can be used: the file holds something else."""
BATCH_ROWS = 32
"""Rows of a Parquet file's row group that is written while rows are made: 16 MB with the longest prompts."""
DEMONSTRATION_COLUMNS = (*COLUMNS, "messages", "conversations", "system", "tools", "response", "completion")


def load_rows(path: str | Path) -> list[Row]:
    """All rows of a file, a folder of files or a pattern, checked, in order.

    Raises DataError for whatever a row needs and lacks, naming file, row (counted from 0), column, value and remedy: of
    all rows at once, the first ten and the number of all.
    """
    rows = read_rows(path)
    refuse_problems(path, [row.why for row in rows if isinstance(row, BadRow)], len(rows))
    return [row for row in rows if isinstance(row, Row)]


def read_rows(path: str | Path) -> list[Row | BadRow]:
    """The same, with a BadRow in the place of each row that cannot be used.

    Raises DataError for a file that is missing, malformed as a whole, empty, or lacks a column in every row.
    """
    _check_parquet_columns(path)
    rows: list[Row | BadRow] = []
    names: dict[str, None] = {}
    num_good = 0
    for record in iter_records(path, COLUMNS):
        if isinstance(record.value, Mapping):
            names |= dict.fromkeys(map(str, record.value))
        rows.append(_read_row(record))
        num_good += isinstance(rows[-1], Row)
        if len(rows) == MOST_BAD_ROWS and not num_good:
            break
    _check_any(path, len(rows))
    if names:
        check_columns(list(names), str(path))
    if len(rows) == MOST_BAD_ROWS and not num_good:
        refuse_problems(f"{path}, read no further", [row.why for row in rows if isinstance(row, BadRow)], len(rows))
    return rows


def load_records(path: str | Path, columns: Sequence[str] = DEMONSTRATION_COLUMNS) -> list[tuple[str, Any]]:
    """Each row as it is there, with the name of file and row for errors.

    Raises DataError for a file that is missing, malformed or empty, and for rows that cannot be read, all at once.
    """
    records = list(iter_records(path, columns))
    refuse_problems(path, [f"{record.where}: {record.problem}" for record in records if record.problem], len(records))
    _check_any(path, len(records))
    return [(record.where, record.value) for record in records]


def write_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows in the format that the suffix names. Readers see the old file or the new one, never a part.

    In Parquet, keys that only some rows have in `extra_info` come back as None in the others. Raises DataError, naming
    the path, if the file system refuses.
    """
    path = Path(path)
    records = [to_record(row) for row in rows]
    with _whole_file(path) as part:
        if path.suffix == PARQUET:
            _with_equal_golds(records)
            table = pa.Table.from_pylist(records) if records else pa.table({column: [] for column in COLUMNS})
            pq.write_table(table, part)
        else:
            _write_lines(part, records)


def stream_rows(path: str | Path, rows: Iterable[Row]) -> int:
    """The same for rows that are made one by one and all have the keys of the first, each with one gold: `BATCH_ROWS`
    of them are in memory at a time. Gives their number. What `rows` raises leaves the old file as it is."""
    path, counted = Path(path), count()
    records = (to_record(row) for row, _ in zip(rows, counted, strict=False))
    with _whole_file(path) as part:
        if path.suffix == PARQUET:
            _write_batches(part, records)
        else:
            _write_lines(part, records)
    return next(counted)


def _write_batches(part: Path, records: Iterator[dict[str, Any]]) -> None:
    """Parquet, a row group per batch; the first batch decides the types of the columns."""
    first = pa.Table.from_pylist(list(islice(records, BATCH_ROWS)))
    with pq.ParquetWriter(part, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        while batch := list(islice(records, BATCH_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=first.schema))


def _write_lines(part: Path, records: Iterable[dict[str, Any]]) -> None:
    with part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end; it is removed on an error, which is DataError
    where the file system refuses."""
    if path.suffix not in (PARQUET, *JSON_SUFFIXES):
        raise DataError(f"{path}: unknown suffix {path.suffix!r}. Remedy: use one of {PARQUET}, .jsonl, .json")
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        part = Path(name)
        yield part
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error.strerror or error}. Remedy: make room, or name a folder that you can "
            "write to"
        ) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _umask() -> int:
    """The system tells it only while it is set."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _with_equal_golds(records: list[dict[str, Any]]) -> None:
    """A column has one type: where one row has several golds, all have a list."""
    models = [record["reward_model"] for record in records]
    if any(isinstance(model["ground_truth"], list) for model in models):
        for model in models:
            gold = model["ground_truth"]
            model["ground_truth"] = gold if isinstance(gold, list) else [gold]


def _read_row(record: Record) -> Row | BadRow:
    if record.problem:
        return BadRow(why=f"{record.where}: {record.problem}")
    try:
        return parse_row(record.value, record.where)
    except DataError as error:
        return BadRow(why=str(error))


def _check_parquet_columns(path: str | Path) -> None:
    """All rows lack what the table lacks."""
    for file in find_files(path):
        if file.name.lower().endswith(PARQUET):
            try:
                check_columns(read_column_names(file), str(file))
            except Unreadable as error:
                raise DataError(f"{file}: {error}") from error


def _check_any(path: str | Path, num_rows: int) -> None:
    if not num_rows:
        raise DataError(f"{path}: the file has no rows. Remedy: write at least one")


@dataclass(frozen=True)
class DataSurvey:
    """One file, folder or pattern."""

    rows: list[Row | BadRow]
    """All, in order."""
    problems: list[str]
    """Rows that cannot be used: file, row, what is wrong, remedy."""
    abilities: dict[str, int]
    """Rows by ability."""
    num_several_golds: int
    """Rows with more than one right answer."""
    shortest_chars: int
    """Characters of the shortest prompt; 0 where no row can be used."""
    longest_chars: int

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    def lines(self) -> list[str]:
        """For the user."""
        kinds = ", ".join(f"{number} {ability}" for ability, number in sorted(self.abilities.items())) or "none"
        return [
            f"{self.num_rows} rows, {len(self.problems)} of them cannot be used; {kinds}",
            f"prompts of {self.shortest_chars} to {self.longest_chars} characters; "
            f"{self.num_several_golds} rows with several right answers",
        ]


def survey_rows(path: str | Path) -> DataSurvey:
    """Reads all rows. Raises DataError for what is wrong with the whole file; what is wrong with rows is told."""
    rows = read_rows(path)
    good = [row for row in rows if isinstance(row, Row)]
    lengths = [sum(len(message["content"]) for message in row.prompt) for row in good]
    return DataSurvey(
        rows=rows,
        problems=[row.why for row in rows if isinstance(row, BadRow)],
        abilities=dict(Counter(row.ability for row in good)),
        num_several_golds=sum(bool(row.reward_model.alternatives) for row in good),
        shortest_chars=min(lengths, default=0),
        longest_chars=max(lengths, default=0),
    )
