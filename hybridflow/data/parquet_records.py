"""Parquet files of rows: only the columns that somebody reads, a few rows at a time, within bounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hybridflow.data.records import Record
from hybridflow.reading import ExpansionBudget, Unreadable
from hybridflow.reading.bounded_json import MAX_DEPTH
from hybridflow.reading.budget import ROW_BYTES

_BATCH_BYTES = 16 * 2**20
_MOST_ROWS_PER_BATCH = 256
_LONG_TIMES = (pa.types.is_timestamp, pa.types.is_date64, pa.types.is_time64, pa.types.is_duration)


def iter_parquet(path: Path, columns: Sequence[str] | None) -> Iterator[Record]:
    """Records with those of `columns` that are there, or with all. Unreadable for what is wrong with the whole file."""
    try:
        with pq.ParquetFile(path) as file:
            yield from _iter_rows(path, file, columns)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last for names of columns
        raise Unreadable(f"not a readable Parquet file: {error}. Remedy: write or download it again") from error


def read_column_names(path: Path) -> list[str]:
    """Column names of the whole file. Raises Unreadable."""
    try:
        return pq.read_schema(path).names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"not a readable Parquet file: {error}. Remedy: write or download it again") from error


def _iter_rows(path: Path, file: pq.ParquetFile, columns: Sequence[str] | None) -> Iterator[Record]:
    budget = ExpansionBudget(path)
    names = file.schema_arrow.names
    present = names if columns is None else [name for name in columns if name in names]
    if twice := [name for name, count in Counter(names).items() if count > 1 and name in present]:
        raise Unreadable(f"two columns have the name {twice[0]!r}. Remedy: keep one of them")
    largest = _check_size(file, set(present), budget)
    batch_rows = max(1, min(_MOST_ROWS_PER_BATCH, _BATCH_BYTES // max(largest, 1)))
    number = 0
    for batch in file.iter_batches(batch_size=batch_rows, columns=present):
        for values in _plain_rows(batch):
            where = f"{path}, row {number}"
            number += 1
            if isinstance(values, str):
                yield Record(where, None, values)
            else:
                budget.spend(_count_bytes(values))
                yield Record(where, values)


def _check_size(file: pq.ParquetFile, columns: set[str], budget: ExpansionBudget) -> int:
    """Bytes of the largest row group, unpacked, as the file itself says. Raises Unreadable for too much of anything."""
    metadata = file.metadata
    budget.spend(metadata.num_rows * ROW_BYTES)  # of nothing but empty values, any number is a few bytes
    sizes: list[int] = []
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        chunks = [group.column(at) for at in range(group.num_columns)]
        needed = [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in columns]
        if any(chunk.path_in_schema.count(".") > MAX_DEPTH for chunk in needed):
            raise Unreadable(f"columns more than {MAX_DEPTH} deep within one another. Remedy: make them flatter")
        sizes.append(sum(chunk.total_uncompressed_size for chunk in needed))
    if sum(sizes) > budget.num_bytes:
        budget.spend(sum(sizes))
    return max(sizes, default=0)


def _plain_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """Each row as Python's values, or why it cannot be."""
    columns = {name: _plain_values(batch.column(name)) for name in batch.schema.names}
    for index in range(batch.num_rows):
        row = {name: values[index] for name, values in columns.items()}
        bad = next(((name, value) for name, value in row.items() if isinstance(value, Exception)), None)
        if bad is None:
            yield row
        else:
            name, error = bad
            yield f"column {name!r}: {type(error).__name__}: {error}. Remedy: write it as UTF-8 text"


def _plain_values(column: pa.Array) -> list[Any]:
    """Values in order; in the place of one that Python has no word for, the exception.

    Times that Python cannot hold become numbers: only `extra_info` can have any, and nothing is decided by them.
    """
    try:
        return _decoded(column.to_pylist(maps_as_pydicts="strict"))
    except Exception:  # times raise whatever the library of time zones raises
        target = _without_times(column.type)
    if target != column.type:
        try:
            return _decoded(column.cast(target).to_pylist(maps_as_pydicts="strict"))
        except Exception:  # one by one, then
            column = column if not _can_cast(column, target) else column.cast(target)
    values: list[Any] = []
    for scalar in column:
        try:
            values += _decoded([scalar.as_py(maps_as_pydicts="strict")])
        except Exception as error:
            values.append(error)
    return values


def _can_cast(column: pa.Array, target: pa.DataType) -> bool:
    try:
        column.cast(target)
    except pa.ArrowException:
        return False
    return True


def _decoded(values: list[Any]) -> list[Any]:
    """Text that was written without being called text is text, at any depth."""
    return [_decode(value) for value in values]


def _decode(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [_decode(one) for one in value]
    if isinstance(value, dict):
        return {key: _decode(one) for key, one in value.items()}
    return value


def _without_times(kind: pa.DataType) -> pa.DataType:
    """The same type with a whole number for each time."""
    if any(is_long(kind) for is_long in _LONG_TIMES):
        return pa.int64()
    if pa.types.is_date32(kind) or pa.types.is_time32(kind):
        return pa.int32()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_times(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_without_times(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_without_times(kind.value_type)))
    return kind


def _count_bytes(value: Any) -> int:
    """About what it takes in memory."""
    total = 0
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
        total += len(one) if isinstance(one, str | bytes) else 8
    return total
