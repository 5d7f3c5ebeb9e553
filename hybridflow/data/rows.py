"""Row files: Parquet (as DocQA-RL-1.6K is published) and JSON lines."""

from __future__ import annotations

import difflib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from hybridflow.data.schema import COLUMNS, Row, check_columns, parse_row
from hybridflow.errors import DataError

__all__ = ["Row", "load_rows", "write_rows"]

JSON_SUFFIXES = (".jsonl", ".json")
SUFFIXES = (".parquet", *JSON_SUFFIXES)


def load_rows(path: str | Path) -> list[Row]:
    """All rows of a .parquet, .jsonl or .json (one object per line) file, checked, in file order.

    Raises DataError, naming file, row (counted from 0), column, value and remedy, for whatever a row needs and lacks.
    """
    if Path(path).suffix == ".parquet" and Path(path).is_file():  # all rows lack what the table lacks
        check_columns(_read_table(Path(path)).column_names, str(path))
    return [parse_row(value, where) for where, value in load_records(path)]


def load_records(path: str | Path) -> list[tuple[str, Any]]:
    """Each row of such a file as it is there, with the name of file and row for errors.

    Raises DataError for a file that is missing, malformed or empty.
    """
    path = Path(path)
    _check_suffix(path)
    if not path.is_file():
        _refuse_missing(path)
    records = _load_parquet(path) if path.suffix == ".parquet" else _load_json_lines(path)
    if not records:
        raise DataError(f"{path}: the file has no rows. Remedy: write at least one")
    return records


def write_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows in the format that the suffix names. Readers see the old file or the new one, never a part.

    In Parquet, keys that only some rows have in `extra_info` come back as None in the others.
    """
    path = Path(path)
    _check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        records: list[dict[str, Any]] = [msgspec.to_builtins(row) for row in rows]
        if path.suffix == ".parquet":
            table = pa.Table.from_pylist(records) if records else pa.table({column: [] for column in COLUMNS})
            pq.write_table(table, part)
        else:
            with part.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: unknown suffix {path.suffix!r}. Remedy: use one of {', '.join(SUFFIXES)}")


def _refuse_missing(path: Path) -> NoReturn:
    if not path.parent.is_dir():
        raise DataError(f"{path}: no such file, and no folder {path.parent}. Remedy: check the path")
    names = sorted(entry.name for entry in path.parent.iterdir())
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    hint = f"did you mean {path.parent / near[0]}?" if near else f"{path.parent} holds no file of a similar name"
    raise DataError(f"{path}: no such file. Remedy: check the path; {hint}")


def _load_parquet(path: Path) -> list[tuple[str, Any]]:
    return [(f"{path}, row {index}", value) for index, value in enumerate(_read_table(path).to_pylist())]


def _read_table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}. Remedy: write or download it again") from error


def _load_json_lines(path: Path) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    try:
        # Not splitlines(): JSON strings may hold U+2028 and its like unescaped.
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows.append(_parse_line(line, path, number, len(rows)))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}. Remedy: save the file as UTF-8") from error
    return rows


def _parse_line(line: str, path: Path, number: int, index: int) -> tuple[str, Any]:
    where = f"{path}, line {number}, row {index}"
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        remedy = "write one whole JSON object per line"
        if number == 1 and line.lstrip().startswith("["):
            remedy += ", not one list of them"
        raise DataError(f"{where}: broken JSON at column {error.colno}: {error.msg}. Remedy: {remedy}") from error
    if "\\ud" in line.lower():
        _check_text(value, where)
    return where, value


def _check_text(value: Any, where: str) -> None:
    """JSON can name half of a surrogate pair, which no other process could be told."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {error.object[error.start]!a} is half of a surrogate pair. Remedy: write whole characters"
        ) from error
