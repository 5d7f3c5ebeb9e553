"""The input of `hybridflow logprobs` and `generate`: JSON lines of token ids or texts, read one at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridflow.errors import ConfigError, DataError


@dataclass(frozen=True)
class InputSummary:
    """What a pass over the whole input found."""

    num_rows: int
    longest: int
    """Tokens of the longest row."""
    sha256: str


class TokenRows:
    """Rows of one file. Each pass reads it anew, so that it need not fit into memory."""

    def __init__(
        self,
        path: Path,
        encode: Callable[[str], list[int]],
        *,
        window: int,
        vocab_size: int,
        named: str = "--input",
        encode_chat: Callable[[list[dict[str, Any]]], list[int]] | None = None,
    ) -> None:
        """`named` is the option that gave the path; `encode_chat` reads conversations, which are refused without it."""
        self._named = named
        self._encode_chat = encode_chat
        self._path = path
        self._encode = encode
        self._window = window
        self._vocab_size = vocab_size

    def check(self) -> InputSummary:
        """Reads every row. Raises DataError for the first that is malformed, naming row, value and remedy."""
        if not self._path.is_file():
            raise DataError(f"{self._named} {self._path}: no such file. Remedy: check the path")
        num_rows, longest, digest = 0, 0, hashlib.sha256()
        for token_ids in self:
            num_rows, longest = num_rows + 1, max(longest, len(token_ids))
            digest.update(json.dumps(token_ids).encode())
        if not num_rows:
            raise DataError(f"{self._named} {self._path}: the file has no rows. Remedy: write one JSON object per line")
        return InputSummary(num_rows, longest, digest.hexdigest())

    def __iter__(self) -> Iterator[list[int]]:
        """Token ids of each row; blank lines are no rows."""
        number = 0
        with self._path.open("rb") as file:
            for line_number, line in enumerate(file, start=1):
                if line.strip():
                    yield self._read(line, f"{self._path}, line {line_number}, row {number}")
                    number += 1

    def _read(self, line: bytes, where: str) -> list[int]:
        try:
            value: Any = json.loads(line)
        except ValueError as error:  # also what is not UTF-8
            raise DataError(f"{where}: broken JSON: {error}. Remedy: write one whole JSON object per line") from error
        if isinstance(value, dict) and "input_ids" in value:
            token_ids = value["input_ids"]
            if not isinstance(token_ids, list) or any(type(token_id) is not int for token_id in token_ids):
                raise DataError(f"{where}: input_ids = {str(token_ids)[:60]}. Remedy: use a list of whole numbers")
        elif (text := self._find(value, str, "text")) is not None:
            try:
                token_ids = self._encode(text)
            except ConfigError as error:
                raise DataError(f"{where}: the text cannot be read: {error}, or use input_ids") from error
        elif self._encode_chat is not None and (messages := self._find(value, list, "messages")) is not None:
            token_ids = self._read_chat(messages, where)
        else:
            got = line.strip()[:60].decode(errors="replace")
            chat = ', or {"messages": [...]}, or either under "prompt"' if self._encode_chat is not None else ""
            raise DataError(f'{where}: got {got}. Remedy: use {{"input_ids": [...]}} or {{"text": "..."}}{chat}')
        self._check_tokens(token_ids, where)
        return token_ids

    def _find(self, row: Any, kind: type, name: str) -> Any:
        """The value of this kind under `name` or, of rows to be completed, "prompt", as in the rows of training."""
        if not isinstance(row, dict):
            return None
        names = (name,) if self._encode_chat is None else (name, "prompt")
        return next((row[key] for key in names if isinstance(row.get(key), kind)), None)

    def _read_chat(self, messages: list[dict[str, Any]], where: str) -> list[int]:
        assert self._encode_chat is not None
        try:
            return self._encode_chat(messages)
        except Exception as error:  # each model's template raises its own
            raise DataError(
                f"{where}: the model's chat template does not take these messages: {error}. Remedy: give a list of "
                '{"role": "user", "content": "..."}, or use text'
            ) from error

    def _check_tokens(self, token_ids: list[int], where: str) -> None:
        if not token_ids:
            raise DataError(f"{where}: the row has no tokens. Remedy: drop it")
        if len(token_ids) > self._window:
            raise DataError(
                f"{where}: the row has {len(token_ids)} tokens, the window of the model is {self._window} "
                "(config.json). Remedy: shorten or split the row, or use a model with a longer window"
            )
        wrong = next((token_id for token_id in token_ids if not 0 <= token_id < self._vocab_size), None)
        if wrong is not None:
            raise DataError(
                f"{where}: token id {wrong} is not in the vocabulary, 0 .. {self._vocab_size - 1}. Remedy: tokenise "
                "the row with the tokenizer of this model"
            )
