"""JSON files of rows: one object per line, or one list; plain, .gz or .zst; a byte order mark is skipped."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from hybridflow.data.records import Record
from hybridflow.errors import DataError
from hybridflow.reading import ExpansionBudget, Unreadable, check_pairs, iter_lines, parse_json
from hybridflow.reading.bounded_json import MAX_FILE_BYTES
from hybridflow.reading.budget import ROW_BYTES

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def iter_json(path: Path) -> Iterator[Record]:
    """Records in order. Raises Unreadable or OSError for what is wrong with the whole file."""
    budget = ExpansionBudget(path)
    with _open(path, budget) as file:
        start = file.peek(len(_BYTE_ORDER_MARK) + 256).removeprefix(_BYTE_ORDER_MARK).lstrip()
        yield from (
            _iter_list(path, file, budget)
            if start.startswith(b"[") and _is_list(start)
            else _iter_lines(path, file, budget)
        )


def iter_json_file(path: Path) -> Iterator[Record]:
    """The same with DataError, for a file whose name does not say what it is."""
    try:
        yield from iter_json(path)
    except (Unreadable, OSError) as error:
        raise DataError(f"{path}: {error}") from error


def _is_list(start: bytes) -> bool:
    """Whether the text is a list of objects. A line such as [1, 2] is a row that is none, and is told so."""
    return start[1:].lstrip()[:1] in (b"{", b"]", b"")


def _iter_lines(path: Path, file: BinaryIO, budget: ExpansionBudget) -> Iterator[Record]:
    row = 0
    for number, line in enumerate(iter_lines(file), start=1):
        budget.spend(ROW_BYTES)
        if isinstance(line, bytes):
            line = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
        if isinstance(line, Unreadable) or line.strip():
            where = f"{path}, line {number}, row {row}"
            try:
                if isinstance(line, Unreadable):
                    raise line
                yield Record(where, parse_json(line.rstrip(b"\r\n")))
            except Unreadable as error:
                remedy = "" if "Remedy" in str(error) else ". Remedy: write one whole JSON object per line"
                yield Record(where, None, f"{error}{remedy}")
            row += 1


def _iter_list(path: Path, file: BinaryIO, budget: ExpansionBudget) -> Iterator[Record]:
    text = file.read(MAX_FILE_BYTES + 1)
    if len(text) > MAX_FILE_BYTES:
        raise Unreadable(f"a list of more than {MAX_FILE_BYTES >> 20} MiB. Remedy: write one JSON object per line")
    for row, value in enumerate(parse_json(text, checks_pairs=False)):
        budget.spend(ROW_BYTES)
        where = f"{path}, row {row}"
        try:
            check_pairs(value)
            yield Record(where, value)
        except Unreadable as error:
            yield Record(where, None, str(error))


def _open(path: Path, budget: ExpansionBudget) -> io.BufferedReader:
    """The unpacked bytes, which are bounded."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return io.BufferedReader(_Unpacked(cast(BinaryIO, gzip.open(path)), budget), 2**20)
    if suffix == ".zst":
        stream = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
        return io.BufferedReader(_Unpacked(cast(BinaryIO, stream), budget), 2**20)
    return path.open("rb")


class _Unpacked(io.RawIOBase):
    """Reads `source`, and counts."""

    def __init__(self, source: BinaryIO, budget: ExpansionBudget) -> None:
        self._source = source
        self._budget = budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            content = self._source.read(len(buffer))
        except (EOFError, zlib.error, pa.ArrowException, OSError) as error:
            raise Unreadable(f"cannot be unpacked: {error}. Remedy: write or download it again") from error
        self._budget.spend(len(content))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._source.close()
        super().close()
