"""The prompt template of the recipe.

Source: QwenLong-L1 (arXiv 2505.17667) and its evaluation scripts; the wording is theirs, to the character. The
four-choice wording is that of LongBench-v2 with the answer sentence that the recipe's verifier looks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from hybridflow.errors import DataError


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


DOCUMENT_OPENING = "Please read the following text and answer the question below.\n\n<text>\n"
DOCUMENT_CLOSING = "\n</text>\n\n"
ANSWER_OPENING = "Therefore, the answer is"
FORMAT_INSTRUCTION = f'\n\nFormat your response as follows: "{ANSWER_OPENING} (insert answer here)".'
CHOICE_ANSWER_OPENING = "The correct answer is"
CHOICE_FORMAT_INSTRUCTION = f'\n\nFormat your response as follows: "{CHOICE_ANSWER_OPENING} (insert answer here)".'
CHOICE_LETTERS = ("A", "B", "C", "D")


def build_prompt(document: str, question: str) -> str:
    """The text of a user message that asks `question` about `document`."""
    return f"{DOCUMENT_OPENING}{document}{DOCUMENT_CLOSING}{build_follow_up(question)}"


def build_follow_up(question: str) -> str:
    """The text of a later user message, on a document already given."""
    return f"{question}{FORMAT_INSTRUCTION}"


def build_choice_prompt(document: str, question: str, choices: Sequence[str]) -> str:
    """The text of a user message with four answers to choose from. Raises DataError unless there are four."""
    if len(choices) != len(CHOICE_LETTERS):
        raise DataError(f"a four-choice question needs four choices, got {len(choices)}: {list(choices)}")
    lines = "".join(f"\n({letter}) {choice}" for letter, choice in zip(CHOICE_LETTERS, choices, strict=True))
    return f"{DOCUMENT_OPENING}{document}{DOCUMENT_CLOSING}{question}{lines}{CHOICE_FORMAT_INSTRUCTION}"


def build_answer(answer: str) -> str:
    """The answer sentence of an open question: 'Therefore, the answer is yen.'"""
    return f"{ANSWER_OPENING} {answer}."


def build_choice_answer(letter: str) -> str:
    """The answer sentence of a four-choice question: 'The correct answer is (B)'."""
    return f"{CHOICE_ANSWER_OPENING} ({letter})"
