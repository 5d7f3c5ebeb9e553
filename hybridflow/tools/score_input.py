"""The input of `hybridflow score`: data rows, and JSON lines of responses to them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridflow.data.naming import suggest
from hybridflow.errors import DataError

SHAPE = '{"index": 0, "response": "..."}'
_KEYS = ("index", "response")


@dataclass(frozen=True)
class Response:
    """One line."""

    index: int
    """Row of the data, from 0."""
    k: int
    """Which response to this row it is, from 0, in the order of the file."""
    text: str


class ResponseFile:
    """Responses to the first `num_rows` rows of `data`. Each pass reads the file anew: it need not fit into memory."""

    def __init__(self, path: Path, num_rows: int, data: Path) -> None:
        self._path = path
        self._num_rows = num_rows
        self._data = data

    def check(self) -> tuple[int, str]:
        """(number of responses, SHA-256 of them). DataError for the first line that is wrong, naming it."""
        if not self._path.is_file():
            raise DataError(f"--responses {self._path}: no such file. Remedy: check the path")
        number, digest = 0, hashlib.sha256()
        for response in self:
            number += 1
            digest.update(json.dumps([response.index, response.text]).encode())
        if not number:
            raise DataError(f"--responses {self._path}: the file has no responses. Remedy: write lines such as {SHAPE}")
        return number, digest.hexdigest()

    def __iter__(self) -> Iterator[Response]:
        """All responses, in the order of the file; blank lines are none."""
        num_seen: Counter[int] = Counter()
        try:
            with self._path.open(encoding="utf-8", newline="\n") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        index, text = self._read(line, f"{self._path}, line {number}")
                        yield Response(index, num_seen[index], text)
                        num_seen[index] += 1
        except UnicodeDecodeError as error:
            raise DataError(f"{self._path}: not UTF-8 text: {error}. Remedy: save the file as UTF-8") from error

    def _read(self, line: str, where: str) -> tuple[int, str]:
        try:
            value: Any = json.loads(line.rstrip("\n"))
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: broken JSON at column {error.colno}: {error.msg}. Remedy: write one object per line, {SHAPE}"
            ) from error
        if not isinstance(value, dict):
            raise DataError(f"{where}: got {line.strip()[:60]}. Remedy: write one object per line, {SHAPE}")
        for key in _KEYS:
            if key not in value:
                near = next((found for found in value if suggest(found, (key,))), None)
                remedy = f"rename {near!r} to {key!r}" if near else f"write lines such as {SHAPE}"
                found = ", ".join(map(repr, value)) or "nothing"
                raise DataError(f"{where}: {key!r} is missing; found {found}. Remedy: {remedy}")
        index, text = value["index"], value["response"]
        if type(index) is not int:
            raise DataError(f"{where}: index is {index!r:.60}. Remedy: give the number of the row, from 0")
        if not 0 <= index < self._num_rows:
            raise DataError(
                f"{where}: index is {index}, {self._data} has the rows 0 to {self._num_rows - 1}. Remedy: give the "
                "number of the row, from 0, in this file"
            )
        if not isinstance(text, str):
            raise DataError(f"{where}: response is {text!r:.60}. Remedy: give the text; an empty one is allowed")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: response has half of a surrogate pair at character {error.start}. Remedy: write whole "
                "characters"
            ) from error
        return index, text
