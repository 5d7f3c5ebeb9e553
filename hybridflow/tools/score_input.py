"""The input of `hybridflow score`: JSON lines of responses to data rows, such as `hybridflow generate` writes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hybridflow.data.naming import suggest
from hybridflow.data.records import refuse_problems
from hybridflow.errors import DataError
from hybridflow.reading import Unreadable, iter_lines, parse_json

SHAPE = '{"index": 0, "response": "..."}'
_KEYS = ("index", "response")


@dataclass(frozen=True)
class Response:
    """One response."""

    index: int | None
    """Row of the data, from 0; None where the line does not say."""
    k: int
    """Which response to this row it is, from 0, in the order of the file."""
    text: str
    problem: str = ""
    """Why it cannot be scored: file, line, what is wrong, remedy."""


class _Given(NamedTuple):
    row: int | None
    text: str
    problem: str = ""


class ResponseFile:
    """Responses to the first `num_rows` rows of `data`. Each pass reads the file again: it need not fit into memory."""

    def __init__(self, path: Path, num_rows: int, data: Path) -> None:
        self._path = path
        self._num_rows = num_rows
        self._data = data

    def check(self) -> tuple[int, str]:
        """(number of responses, SHA-256 of them). DataError for a file without one that can be scored."""
        if not self._path.is_file():
            raise DataError(f"--responses {self._path}: no such file. Remedy: check the path")
        number, digest = 0, hashlib.sha256()
        problems: list[str] = []
        for response in self:
            number += 1
            content = [response.index, response.text, *([response.problem] if response.problem else [])]
            digest.update(json.dumps(content).encode())
            problems += [response.problem] if response.problem else []
        if not number:
            raise DataError(f"--responses {self._path}: the file has no responses. Remedy: write lines such as {SHAPE}")
        if len(problems) == number:
            refuse_problems(self._path, problems, number)
        return number, digest.hexdigest()

    def __iter__(self) -> Iterator[Response]:
        """All responses, in the order of the file; blank lines are none."""
        num_seen: Counter[int | None] = Counter()
        with self._path.open("rb") as file:
            for number, line in enumerate(iter_lines(file), start=1):
                if isinstance(line, Unreadable) or line.strip():
                    for given in self._read(line, f"{self._path}, line {number}"):
                        yield Response(given.row, num_seen[given.row], given.text, given.problem)
                        num_seen[given.row] += 1

    def _read(self, line: bytes | Unreadable, where: str) -> list[_Given]:
        """One response; of a row with several completions, as `hybridflow generate` writes them, all."""
        index: int | None = None
        try:
            if isinstance(line, Unreadable):
                raise line
            value = parse_json(line.rstrip(b"\r\n"), checks_pairs=False)
            if not isinstance(value, dict):
                raise Unreadable(f"got {json.dumps(value)[:60]}")
            key = "row" if "completions" in value else "index"
            if key in value:
                index = self._read_index(value[key])
            texts = _texts_of(value["completions"]) if key == "row" else [_find(value)]
            return [_Given(index, _checked(text)) for text in texts]
        except Unreadable as error:
            remedy = "" if "Remedy" in str(error) else f". Remedy: write one object per line, {SHAPE}"
            return [_Given(index, "", f"{where}: {error}{remedy}")]

    def _read_index(self, index: Any) -> int:
        if type(index) is not int:
            raise Unreadable(f"index is {index!r:.60}. Remedy: give the number of the row, from 0")
        if not 0 <= index < self._num_rows:
            raise Unreadable(
                f"index is {str(index)[:60]}, {self._data} has the rows 0 to {self._num_rows - 1}. Remedy: give the "
                "number of the row, from 0, in this file"
            )
        return index


def _find(value: dict[str, Any]) -> Any:
    """Find the text under "response". Raises Unreadable."""
    for key in _KEYS:
        if key not in value:
            near = next((found for found in value if suggest(found, (key,))), None)
            remedy = f"rename {near!r} to {key!r}" if near else f"write lines such as {SHAPE}"
            found = ", ".join(map(repr, value)) or "nothing"
            raise Unreadable(f"{key!r} is missing; found {found[:200]}. Remedy: {remedy}")
    return value["response"]


def _texts_of(completions: Any) -> list[Any]:
    if not isinstance(completions, list) or not all(isinstance(one, dict) and "text" in one for one in completions):
        raise Unreadable(f"completions is {str(completions)[:60]}. Remedy: give a list of objects, each with its text")
    return [one["text"] for one in completions]


def _checked(text: Any) -> str:
    if not isinstance(text, str):
        raise Unreadable(f"response is {text!r:.60}. Remedy: give the text; an empty one is allowed")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unreadable(
            f"response has half of a surrogate pair at character {error.start}. Remedy: write whole characters"
        ) from error
    return text
