"""Rows of the schema out of anything that has a question, an answer and, most often, a document.

Tables as text (.csv and .tsv) have the names of the columns in the first line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridflow.data.chat_template import (
    CHOICE_FORMAT_INSTRUCTION,
    CHOICE_LETTERS,
    build_choice_prompt,
    build_follow_up,
    build_prompt,
)
from hybridflow.data.files import find_files, refuse_missing
from hybridflow.data.naming import suggest
from hybridflow.data.records import Record, iter_file_records, refuse_problems
from hybridflow.data.schema import BadRow, RewardModel, Row, read_golds
from hybridflow.errors import DataError
from hybridflow.reading import Unreadable, parse_json
from hybridflow.reading.budget import MAX_LINE_BYTES

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


REQUIRED = ("question", "answer")
PARTS = (*REQUIRED, "document", "choices")
"""Parts of a row; a name that --columns does not give is the column's own."""


@dataclass(frozen=True)
class Conversion:
    """The job that a command line asks for."""

    path: Path
    columns: dict[str, str] = field(default_factory=dict)
    """Column of the file by part; `a.b` is key b of the objects in column a."""
    ability: str = "doc-qa"
    data_source: str = ""
    """Empty: the name of the file."""


def convert_rows(conversion: Conversion) -> list[Row | BadRow]:
    """A row for each of the file's. Raises DataError that names all missing columns, with what is there."""
    records = list(_iter_records(conversion.path))
    if not records:
        raise DataError(f"{conversion.path}: the file has no rows. Remedy: write at least one")
    found: dict[str, None] = {}
    for record in records:
        if isinstance(record.value, Mapping):
            found |= dict.fromkeys(map(str, record.value))
    if not found:
        refuse_problems(conversion.path, [_describe(record) for record in records], len(records))
    columns = _choose_columns(conversion, list(found))
    return [_convert(record, index, columns, conversion) for index, record in enumerate(records)]


def read_mapping(text: str) -> dict[str, str]:
    """`question=q,answer=a` as {"question": "q", "answer": "a"}. Raises DataError."""
    mapping: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        part, equals, column = (piece.strip() for piece in pair.partition("="))
        if part in mapping:
            raise DataError(f"--columns {text}: two columns for {part}. Remedy: write {part}=COLUMN once")
        if not equals or not column or part not in PARTS:
            raise DataError(
                f"--columns {text}: {pair!r} is none of {', '.join(f'{name}=COLUMN' for name in PARTS)}"
                f"{suggest(part, PARTS)}. Remedy: write question=...,answer=...,document=..."
            )
        mapping[part] = column
    return mapping


def _iter_records(path: Path) -> Iterator[Record]:
    if path.suffix.lower() not in SEPARATORS:
        for file in find_files(path):
            yield from iter_file_records(file, None)
        return
    if not path.exists():
        refuse_missing(path)
    try:
        yield from iter_csv(path)
    except (Unreadable, OSError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _choose_columns(conversion: Conversion, found: Sequence[str]) -> dict[str, str]:
    """Column of each part that there is."""
    chosen = {part: conversion.columns.get(part, part) for part in PARTS}
    missing = {part: name for part, name in chosen.items() if name not in found and name.split(".")[0] not in found}
    wanted = [part for part in missing if part in REQUIRED or part in conversion.columns]
    if wanted:
        named = ", ".join(f"{part} ({missing[part]!r}{suggest(missing[part], found)})" for part in wanted)
        known = [f"{part}={name}" for part, name in chosen.items() if part not in missing]
        command = ",".join([*known, *(f"{part}=..." for part in wanted)])
        raise DataError(
            f"{conversion.path}: no column for {named}; found {', '.join(found) or 'none'}. Remedy: hybridflow data "
            f"convert {conversion.path} --columns {command} --output rows.parquet"
        )
    return {part: name for part, name in chosen.items() if part not in missing}


def _convert(record: Record, index: int, columns: dict[str, str], conversion: Conversion) -> Row | BadRow:
    if record.problem or not isinstance(record.value, Mapping):
        return BadRow(why=_describe(record))
    try:
        values = {part: _find(record.value, name) for part, name in columns.items()}
        question = _text(values["question"], record.where, columns["question"])
        golds = read_golds(values["answer"], record.where)
        document = values.get("document")
        text = None if document is None else _text(document, record.where, columns["document"])
        choices = _listed(values.get("choices"))
        if choices is not None:
            golds = [_letter_of(gold, choices, record.where) for gold in golds]
        content = _build_content(question, text, choices, conversion.ability)
        return Row(
            data_source=conversion.data_source or conversion.path.name.split(".")[0],
            prompt=[{"role": "user", "content": content}],
            ability=conversion.ability,
            reward_model=RewardModel(style="rule", ground_truth=golds[0], alternatives=golds[1:]),
            extra_info={"index": index, "question": question},
        )
    except DataError as error:
        return BadRow(why=str(error))


def _describe(record: Record) -> str:
    """Describe a record that is no object."""
    return f"{record.where}: {record.problem or 'not an object. Remedy: write one object per row'}"


def _find(record: Mapping[Any, Any], name: str) -> Any:
    if name in record:
        return record[name]
    value: Any = record
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _listed(value: Any) -> Any:
    """A list that a table holds as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return parse_json(value)
        except Unreadable:
            return value
    return value


def _text(value: Any, where: str, column: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}, column {column!r}: got {str(value)[:60]!r}. Remedy: give a text, or drop the row")
    return value.strip()


def _build_content(question: str, document: str | None, choices: Any, ability: str) -> str:
    """The prompt with the sentence that the verifier looks for."""
    if choices is not None:
        if document is not None:
            return build_choice_prompt(document, question, choices)
        lines = "".join(f"\n({letter}) {choice}" for letter, choice in zip(CHOICE_LETTERS, choices, strict=True))
        return f"{question}{lines}{CHOICE_FORMAT_INSTRUCTION}"
    prompt = build_follow_up(question) if document is None else build_prompt(document, question)
    if ability == "doc-mc":
        return prompt.removesuffix(build_follow_up("")) + CHOICE_FORMAT_INSTRUCTION
    return prompt


def _letter_of(gold: str, choices: Any, where: str) -> str:
    if not isinstance(choices, list) or len(choices) != len(CHOICE_LETTERS):
        raise DataError(f"{where}, choices: got {str(choices)[:60]!r}. Remedy: give a list of four texts")
    if gold in choices:
        return CHOICE_LETTERS[choices.index(gold)]
    letter = gold.strip(" ().").upper()
    if letter not in CHOICE_LETTERS:
        raise DataError(f"{where}, answer: {gold[:60]!r} is neither A to D nor one of the choices. Remedy: give one")
    return letter
