"""Tokenised prompts of a data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from hybridflow.data.chat_encoding import encode_chat
from hybridflow.data.row_reference import RowReference, dump_row, hash_prompt
from hybridflow.data.schema import BadRow, Row
from hybridflow.data.truncation import truncate_middle
from hybridflow.errors import DataError
from hybridflow.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptDataset:
    """The prompts of one data set, in file order; `hybridflow.curriculum` says in which order training takes them."""

    prompts: list[Prompt]
    """All prompts, in file order: the order of evaluation."""
    num_rows: int
    """Rows read."""
    unusable: dict[str, str]
    """Why a row has no prompt, by the id that its prompt would have."""
    documents: dict[str, RowReference]
    """Where the prompt of an id comes from."""
    num_dropped: int
    """Rows among these that are left out because their prompt is longer than the limit."""
    num_truncated: int
    """Rows whose document lost its middle for the same reason."""

    def __init__(
        self,
        name: str,
        rows: Sequence[Row | BadRow],
        tokenizer: PreTrainedTokenizerBase,
        max_prompt_tokens: int,
        overlong: Literal["error", "drop", "truncate_middle"] = "error",
        questions: Sequence[str] | None = None,
        row_arguments: frozenset[str] = frozenset(),
        source: str = "",
    ) -> None:
        """Tokenises all rows. Prompt ids are `name` and the row's number in `rows`, so dropping a row renames none.

        A BadRow has no prompt, and keeps its number: see `unusable`. `questions`: that of each row, for the judge and
        the records. `row_arguments`: what verifiers take of a row beside the gold, `prompt` or `extra_info`. `source`:
        what the rows were read from.

        Raises DataError for a prompt above `max_prompt_tokens`, with `overlong` "error" or where it cannot be cut, and
        when none is left.
        """
        self.name = name
        self.prompts = []
        self.num_rows = len(rows)
        self.num_dropped = self.num_truncated = 0
        self.unusable: dict[str, str] = {}
        self.documents: dict[str, RowReference] = {}
        for number, row in enumerate(rows):
            prompt_id = f"{name}-{number:06d}"
            if isinstance(row, BadRow):
                self.unusable[prompt_id] = row.why
                continue
            self.documents[prompt_id] = RowReference(source or name, number, hash_prompt(row))
            try:
                row, token_ids = self._encode(tokenizer, row, max_prompt_tokens, overlong)
            except DataError as error:
                raise DataError(f"data set {name!r}, row {number} ({row.data_source}): {error}") from error
            if len(token_ids) > max_prompt_tokens:
                if overlong == "error":
                    raise DataError(
                        f"data set {name!r}, row {number} ({row.data_source}): the prompt has {len(token_ids)} tokens "
                        f"with its chat template, the limit max_prompt_tokens is {max_prompt_tokens}. "
                        'Remedy: raise the limit, shorten the row, or set overlong="drop" to leave such rows out, '
                        '"truncate_middle" to cut their documents'
                    )
                self.num_dropped += 1
                continue
            self.prompts.append(
                Prompt(
                    prompt_id=prompt_id,
                    token_ids=token_ids,
                    data_source=row.data_source,
                    ability=row.ability,
                    ground_truth=row.reward_model.ground_truth,
                    alternatives=row.reward_model.alternatives,
                    question="" if questions is None else questions[number],
                    row=dump_row(row, row_arguments),
                )
            )
        if not self.prompts:
            raise DataError(
                f"data set {name!r} has no prompts: {len(rows)} rows, of which {self.num_dropped} are longer than "
                f"max_prompt_tokens={max_prompt_tokens}. Remedy: give it rows, or raise the limit"
            )

    def _encode(
        self, tokenizer: PreTrainedTokenizerBase, row: Row, max_prompt_tokens: int, overlong: str
    ) -> tuple[Row, list[int]]:
        """The row, cut where it is to be, and the token ids of its prompt."""
        token_ids = encode_chat(tokenizer, row.prompt)
        if len(token_ids) <= max_prompt_tokens or overlong != "truncate_middle":
            return row, token_ids
        self.num_truncated += 1
        return truncate_middle(tokenizer, row, max_prompt_tokens)

    def digest(self) -> str:
        """SHA-256 over ids, texts and gold answers of all prompts: another reading that gives it has the same ones."""
        told = (
            (one.prompt_id, self.documents[one.prompt_id].sha256, one.ground_truth, one.alternatives)
            for one in self.prompts
        )
        return hashlib.sha256(json.dumps(list(told)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class EvalSet:
    """Prompts whose accuracy is measured under one name."""

    name: str
    prompts: list[Prompt]
    unusable: dict[str, str] = field(default_factory=dict)
    """Why a row has no prompt, by the id that its prompt would have: its verdict is unknown."""
