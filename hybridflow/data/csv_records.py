"""Tables as text: .csv and .tsv, the names of the columns in the first line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from hybridflow.data.records import Record
from hybridflow.reading import Unreadable
from hybridflow.reading.lines import MAX_LINE_BYTES

SEPARATORS = {".csv": ",", ".tsv": "\t"}
_OTHER_SEPARATORS = (";", "\t", "|", ",")


def iter_csv(path: Path) -> Iterator[Record]:
    """Rows in order, every value a text. Raises Unreadable or OSError for what is wrong with the whole file."""
    csv.field_size_limit(MAX_LINE_BYTES)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.reader(file, delimiter=SEPARATORS[path.suffix.lower()], strict=True)
            names = [name.strip() for name in next(table, [])]
            if len(names) == 1 and (other := next((sign for sign in _OTHER_SEPARATORS if sign in names[0]), "")):
                raise Unreadable(
                    f"its first line, {names[0]!r}, has {other!r} between the names, where {path.suffix} has "
                    f"{SEPARATORS[path.suffix.lower()]!r}. Remedy: save it with that between the values"
                )
            if len(set(names)) < len(names) or not all(names):
                raise Unreadable(f"its first line, {names}, does not name every column once. Remedy: write such a line")
            for row, values in enumerate(line for line in table if line):
                where = f"{path}, line {table.line_num}, row {row}"
                if len(values) == len(names):
                    yield Record(where, dict(zip(names, values, strict=True)))
                else:
                    yield Record(where, None, f"{len(values)} values for {len(names)} columns. Remedy: quote texts")
    except (csv.Error, UnicodeDecodeError) as error:
        raise Unreadable(f"no table as UTF-8 text: {error}. Remedy: save it as UTF-8, with texts quoted") from error
