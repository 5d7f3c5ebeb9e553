"""The input of `hybridflow logprobs` and `generate`: token ids, texts or conversations, read one row at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridflow.data.chat_template import Message
from hybridflow.data.files import find_files, has_known_suffix
from hybridflow.data.json_records import iter_json_file
from hybridflow.data.messages import read_messages, spells_messages
from hybridflow.data.records import iter_records
from hybridflow.errors import ConfigError, DataError

CHAT_COLUMNS = ("messages", "conversations", "prompt")
TEXT_COLUMNS = ("text", "prompt")
COLUMNS = ("input_ids", "text", *CHAT_COLUMNS, "reward_model")


@dataclass(frozen=True)
class InputSummary:
    """The summary of a pass over the whole input."""

    num_rows: int
    longest: int
    """Tokens of the longest row."""
    sha256: str


class TokenRows:
    """Rows of one file. Each pass reads it again, so that it need not fit into memory."""

    def __init__(
        self,
        path: Path,
        encode: Callable[[str], list[int]],
        *,
        window: int,
        vocab_size: int,
        encode_chat: Callable[[Sequence[Message]], list[int]],
        named: str = "--input",
    ) -> None:
        """`named` is the option that gave the path."""
        self._named = named
        self._encode_chat = encode_chat
        self._path = path
        self._encode = encode
        self._window = window
        self._vocab_size = vocab_size

    def check(self) -> InputSummary:
        """Reads every row. Raises DataError for the first that is malformed, naming row, value and remedy."""
        try:
            find_files(self._path) if not self._is_of_lines else None
        except DataError as error:
            raise DataError(f"{self._named} {error}") from error
        num_rows, longest, digest = 0, 0, hashlib.sha256()
        for token_ids in self:
            num_rows, longest = num_rows + 1, max(longest, len(token_ids))
            digest.update(json.dumps(token_ids).encode())
        if not num_rows:
            raise DataError(f"{self._named} {self._path}: the file has no rows. Remedy: write one JSON object per line")
        return InputSummary(num_rows, longest, digest.hexdigest())

    def __iter__(self) -> Iterator[list[int]]:
        """Token ids of each row; blank lines are no rows."""
        records = iter_json_file(self._path) if self._is_of_lines else iter_records(self._path, COLUMNS)
        for record in records:
            if record.problem:
                raise DataError(f"{record.where}: {record.problem}")
            yield self._read(record.value, record.where)

    @property
    def _is_of_lines(self) -> bool:
        """JSON lines under any other name."""
        return self._path.is_file() and not has_known_suffix(self._path)

    def _read(self, value: Any, where: str) -> list[int]:
        row = value if isinstance(value, dict) else {}
        if row.get("input_ids") is not None:
            token_ids = row["input_ids"]
            if not isinstance(token_ids, list) or any(type(token_id) is not int for token_id in token_ids):
                raise DataError(f"{where}: input_ids = {str(token_ids)[:60]}. Remedy: use a list of whole numbers")
        elif (column := next((name for name in CHAT_COLUMNS if self._is_chat(row, name)), None)) is not None:
            token_ids = self._read_chat(read_messages(row[column], where, column), where)
        elif (text := next((row[name] for name in TEXT_COLUMNS if isinstance(row.get(name), str)), None)) is not None:
            try:
                token_ids = self._encode(text)
            except ConfigError as error:
                raise DataError(f"{where}: the text cannot be read: {error}, or use input_ids") from error
        else:
            got = json.dumps(value, default=str)[:60]
            raise DataError(
                f'{where}: got {got}. Remedy: use {{"input_ids": [...]}} or {{"text": "..."}}, or '
                '{"messages": [...]}, or either under "prompt"'
            )
        self._check_tokens(token_ids, where)
        return token_ids

    def _is_chat(self, row: dict[str, Any], column: str) -> bool:
        """Whether the column is a conversation; a text under "prompt" is one in a row that training reads."""
        value = row.get(column)
        if not isinstance(value, str):
            return isinstance(value, list)
        return column != "prompt" or "reward_model" in row or spells_messages(value)

    def _read_chat(self, messages: Sequence[Message], where: str) -> list[int]:
        try:
            return self._encode_chat(messages)
        except DataError as error:
            raise DataError(f"{where}: {error}. Remedy: give messages that the template takes, or use text") from error

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
