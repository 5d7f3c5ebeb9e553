"""Conversations to imitate, out of files: what supervised training reads.

A row is a conversation, `{"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]}` (or
`{"conversations": [{"from": "human", "value": ...}, ...]}`), perhaps with the system's message in a column `system`; or
a `prompt` and a `response` (or `completion`); or a row of the DocQA-RL schema. Of the last, the answer to imitate is
its column `response` or, where that is missing or empty, the gold answer `reward_model.ground_truth`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hybridflow.data.chat_template import Message
from hybridflow.data.conversation import build_sequence, split_conversation
from hybridflow.data.messages import read_messages, refuse
from hybridflow.data.records import refuse_problems
from hybridflow.data.rows import load_records
from hybridflow.data.schema import parse_row
from hybridflow.data.streams import draw_indices
from hybridflow.errors import DataError
from hybridflow.types import TrainSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWERS = ("response", "completion")
GoldCheck = Callable[[str, str, Sequence[str]], str]
"""(data source, ability, golds) -> why no answer could be right, or nothing."""


class DemonstrationSet:
    """The tokenised demonstrations of one file, in file order."""

    sequences: list[TrainSequence]
    num_dropped: int
    """Rows left out because they are longer than the limit."""
    num_empty_thoughts: int
    """Rows among the others with an answer whose thinking, which the generation prompt opens, is closed empty."""
    num_context_answers: int
    """Answers in them that are read and not learnt, see `split_conversation`."""
    num_endless: int
    """Rows with an answer behind which the chat template puts no end token."""

    def __init__(
        self,
        path: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens: int,
        seed: int,
        overlong: Literal["error", "drop"] = "error",
        find_gold_problem: GoldCheck = lambda data_source, ability, golds: "",
    ) -> None:
        """Raises DataError, naming file, row and remedy, for a row that is malformed or above `max_tokens`."""
        self._seed = seed
        self.sequences = []
        self.num_dropped = self.num_empty_thoughts = self.num_context_answers = self.num_endless = 0
        for number, (where, conversation) in enumerate(read_conversations(path, find_gold_problem)):
            try:
                split = split_conversation(tokenizer, conversation, f"sft-{number:06d}")
            except DataError as error:
                raise DataError(f"{where}: {error}. Remedy: mend or drop the row") from error
            sequence = build_sequence(split, f"sft-{number:06d}")
            if sequence.num_tokens <= max_tokens:
                self.sequences.append(sequence)
                self.num_empty_thoughts += split.num_empty_thoughts > 0
                self.num_context_answers += split.num_context_answers
                self.num_endless += split.num_endless_answers > 0
            elif overlong == "drop":
                self.num_dropped += 1
            else:
                raise DataError(
                    f"{where}: the conversation has {sequence.num_tokens} tokens, the window data.max_tokens is "
                    f'{max_tokens}. Remedy: raise it, shorten the row, or set data.overlong = "drop"'
                )
        if not self.sequences:
            raise DataError(f"{path}: all {self.num_dropped} rows are longer than data.max_tokens = {max_tokens}")

    def __len__(self) -> int:
        return len(self.sequences)

    def describe(self) -> list[str]:
        """Notes for the user on how the rows are learnt; most often none."""
        notes: list[str] = []
        if self.num_empty_thoughts:
            notes.append(
                f"{self.num_empty_thoughts} of {len(self)} rows answer without thinking, and the model's generation "
                "prompt opens it: they teach to close it empty, and the answer"
            )
        if self.num_context_answers:
            notes.append(
                f"{self.num_context_answers} earlier answers are read and not learnt: the chat template writes them "
                "differently once later messages follow"
            )
        if self.num_endless:
            notes.append(
                f"{self.num_endless} of {len(self)} rows end without a special token, as the chat template puts none "
                "behind an answer: a model does not learn to stop; write {{ eos_token }} there"
            )
        return notes

    def sequences_for_step(self, step: int, num_sequences: int) -> list[TrainSequence]:
        """The rows of step `step` (from 0); see `draw_indices`."""
        names = ("hybridflow.sft", self._seed)
        return [self.sequences[index] for index in draw_indices(names, len(self.sequences), step, num_sequences)]


def read_conversations(
    path: str | Path, find_gold_problem: GoldCheck = lambda data_source, ability, golds: ""
) -> list[tuple[str, list[Message]]]:
    """(file and row, messages) of each row. Raises DataError that names all rows that cannot be used.

    `find_gold_problem` says of a row of the schema why its golds are none.
    """
    records = load_records(path)
    conversations: list[tuple[str, list[Message]]] = []
    problems: list[str] = []
    for where, record in records:
        try:
            conversations.append((where, read_conversation(record, where, find_gold_problem)))
        except DataError as error:
            problems.append(str(error))
    refuse_problems(path, problems, len(records))
    return conversations


def read_conversation(
    record: Any, where: str, find_gold_problem: GoldCheck = lambda data_source, ability, golds: ""
) -> list[Message]:
    """The messages of one row, the last of them to be imitated. Raises DataError."""
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: got {type(record).__name__}. Remedy: write one JSON object per row")
    if record.get("tools") not in (None, [], "", "[]"):
        refuse(where, "tools", record["tools"], "no tools are shown to the model: write them into the system's message")
    column = next((name for name in ("messages", "conversations") if record.get(name) is not None), None)
    if column is not None:
        return _with_system(record.get("system"), read_messages(record[column], where, column), where)
    if record.get("prompt") is None:
        raise DataError(
            f"{where}: neither 'messages' (a conversation) nor 'prompt' is there; "
            f"found {', '.join(map(str, record)) or 'nothing'}. Remedy: add one of them"
        )
    name = next((name for name in ANSWERS if record.get(name)), None)
    if name is not None and record.get("reward_model") is None:
        prompt, answer = read_messages(record["prompt"], where, "prompt"), record[name]
        answers = _as_answer(answer) if isinstance(answer, str) else read_messages(answer, where, name)
        return _with_system(record.get("system"), [*prompt, *answers], where)
    row = parse_row(record, where)
    if why := find_gold_problem(row.data_source, row.ability, row.reward_model.golds):
        raise DataError(f"{where}: {why}")
    answer = record[name] if name is not None else row.reward_model.ground_truth
    if not isinstance(answer, str):
        raise DataError(f"{where}, column {name!r}: got {type(answer).__name__}. Remedy: use a string")
    return [*row.prompt, *_as_answer(answer)]


def _as_answer(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def _with_system(system: Any, messages: list[Message], where: str) -> list[Message]:
    """A column of its own holds the system's message in some files of the ShareGPT form."""
    if system is None or system == "":
        return messages
    if not isinstance(system, str):
        refuse(where, "system", system, "use a text")
    if messages[0]["role"] == "system":
        refuse(where, "system", system, "the conversation has a system message of its own: keep one of them")
    return [{"role": "system", "content": system}, *messages]
