"""The question of a row: all that a judge is told of the prompt.

It is the first of these that the row has:

| where                                                     | what goes to the judge                           |
|-----------------------------------------------------------|--------------------------------------------------|
| `extra_info`, under the key `reward.judge.question_column` | that text                                        |
| last user message, behind `</text>`                       | what stands there, up to the format instruction  |
| last user message, the document in an earlier one         | all of it, up to the format instruction          |
| last user message, one sentence, or a question as its     | that sentence                                    |
| last paragraph                                            |                                                  |
| `reward.judge.question = "whole_prompt"`                  | all messages as they are, document included      |

A row with none of them has no question, and a judge that does not know what was asked cannot compare answers: such a
row is refused by training, and its verdict is unknown elsewhere. Source of the marks: recipe section 4, the template of
QwenLong-L1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hybridflow.config.judge_section import JudgeSection
from hybridflow.rewards.judge_prompt import JudgeMessage as ChatMessage

MAX_QUESTION_CHARS = 4_000
"""Longest text between marks: what is longer holds a document."""
MAX_SENTENCE_CHARS = 400
"""Longest sentence that no mark sets apart."""
NO_QUESTION = (
    "the row has no question for the judge: extra_info.{column} is no text, and the prompt has none of the template's "
    "marks. Remedy: put the question into extra_info.{column}, or set reward.judge.question_column, or, as the last "
    'resort, reward.judge.question = "whole_prompt"'
)

_DOCUMENT_END = "</text>"
_FORMAT_INSTRUCTION = "Format your response as follows"
_LABEL = re.compile(r"(?:question|q|\u95ee\u9898|\u95ee)\s{0,4}[:\uff1a]\s{0,4}", re.IGNORECASE)
_QUESTION_MARKS = ("?", "\uff1f")
_SENTENCE_BREAK = re.compile(r"[.!?]['\")]?\s+\S|[\u3002\uff01\uff1f]\S|[:;\uff1a\uff1b]\s|\n")


class Question(NamedTuple):
    """The text for the judge, or why there is none."""

    text: str
    why: str = ""
    """Empty where `text` is not."""


def find_question(prompt: Sequence[ChatMessage], extra_info: Mapping[str, Any], judge: JudgeSection) -> Question:
    """The question of one row, as the table says.

    Example: find_question([{"role": "user", "content": "<text>...</text>\\n\\nWhich city?"}], {}, judge).text ==
    "Which city?"

    Args:
        prompt: Messages, each with `role` and `content`.
        judge: Says where else to look.
    """
    own = extra_info.get(judge.question_column)
    if isinstance(own, str) and own.strip():
        return Question(own.strip())
    if found := _find_by_marks(prompt):
        return Question(found)
    if judge.question == "whole_prompt":
        return Question("\n\n".join(message["content"] for message in prompt).strip())
    return Question("", NO_QUESTION.format(column=judge.question_column))


def _find_by_marks(prompt: Sequence[ChatMessage]) -> str:
    """The question of the last user message; "" where nothing sets one apart from what stands before it."""
    at = max((index for index, message in enumerate(prompt) if message["role"] == "user"), default=None)
    if at is None:
        return ""
    _, closed, after = prompt[at]["content"].rpartition(_DOCUMENT_END)
    before, is_marked, _ = after.rpartition(_FORMAT_INSTRUCTION)
    asked = (before if is_marked else after).strip()
    has_document = bool(closed) or any(_DOCUMENT_END in message["content"] for message in prompt[:at])
    if has_document:
        return asked if len(asked) <= MAX_QUESTION_CHARS else ""
    return _find_sentence(asked)


def _find_sentence(text: str) -> str:
    """The last paragraph where it is one question, or the whole text where it is one sentence; else ""."""
    earlier, _, last = text.rpartition("\n\n")
    paragraph = last.strip()
    labelled = _LABEL.match(paragraph)
    sentence = paragraph[labelled.end() :] if labelled else paragraph
    if not sentence or len(sentence) > MAX_SENTENCE_CHARS or _SENTENCE_BREAK.search(sentence):
        return ""
    is_asked = bool(labelled) or sentence.endswith(_QUESTION_MARKS) or not earlier.strip()
    return sentence if is_asked else ""
