"""The part of a prompt that a judge is told: the question, wherever a row holds it, and never its context unasked."""

from __future__ import annotations

from typing import Any

import pytest

from hybridflow.config.judge_section import JudgeSection
from hybridflow.data.chat_template import build_choice_prompt, build_follow_up, build_prompt
from hybridflow.rewards.judge_prompt import JudgeMessage
from hybridflow.rewards.judge_question import MAX_QUESTION_CHARS, find_question

AUTO = JudgeSection()
WHOLE = JudgeSection(question="whole_prompt")
DOCUMENT = "The lease began in 2015. It ends in 2030.\n\nWho signed it? Nobody knows."


def ask(content: str, judge: JudgeSection = AUTO, extra_info: dict[str, Any] | None = None) -> str:
    return find_question([{"role": "user", "content": content}], extra_info or {}, judge).text


@pytest.mark.parametrize(
    ("content", "question"),
    [
        (build_prompt("A long report.\n\nWhat is this?", "What is the rate?"), "What is the rate?"),
        (build_prompt("It says </text> here.", "What is\n\nthe rate?"), "What is\n\nthe rate?"),
        (build_choice_prompt("doc", "Which?", ["a", "b", "c", "d"]), "Which?\n(A) a\n(B) b\n(C) c\n(D) d"),
        (build_follow_up("Which city?"), "Which city?"),
        ("What is the rate?", "What is the rate?"),
        ("Compute 17.5 * 3", "Compute 17.5 * 3"),
        ("租约何时结束？", "租约何时结束？"),
        (f"{DOCUMENT}\n\nWhat is the rate?", "What is the rate?"),
        (f"{DOCUMENT}\n\nQuestion: Name the tenant", "Name the tenant"),
        (f"Context: {DOCUMENT}", ""),
        ("Paris is the capital of France. What is the capital of France?", ""),
        ("Context: Paris is the capital. Question: what is it?", ""),
        (f"{DOCUMENT}\n\nWhat is the rate? Answer in one word.", ""),
        ("x" * 10_000, ""),
        (build_prompt("doc", "why " * MAX_QUESTION_CHARS), ""),
    ],
)
def test_question_by_marks(content: str, question: str) -> None:
    assert ask(content) == question


def test_the_column_comes_first_and_can_be_another() -> None:
    prompt = build_prompt(DOCUMENT, "What is the rate?")
    assert ask(prompt, AUTO, {"question": " Which rate? "}) == "Which rate?"
    other = JudgeSection(question_column="extra_info.query")
    assert ask(prompt, other, {"question": "Which rate?", "query": "The rate of 2015?"}) == "The rate of 2015?"
    assert ask(prompt, AUTO, {"question": None}) == ask(prompt, AUTO, {"question": ["a"]}) == "What is the rate?"


def test_a_follow_up_on_a_document_is_taken_whole() -> None:
    prompt: list[JudgeMessage] = [
        {"role": "user", "content": build_prompt(DOCUMENT, "What is the rate?")},
        {"role": "assistant", "content": "The answer is 5."},
        {"role": "user", "content": build_follow_up("It is given twice.\n\nWhich one counts")},
    ]
    assert find_question(prompt, {}, AUTO).text == "It is given twice.\n\nWhich one counts"


def test_a_row_without_a_question_says_what_to_do() -> None:
    found = find_question([{"role": "system", "content": "Be brief."}], {}, AUTO)
    assert found.text == "" and "extra_info.question" in found.why
    assert 'reward.judge.question = "whole_prompt"' in found.why and "Remedy:" in found.why


def test_the_whole_prompt_goes_only_where_nothing_else_was_found() -> None:
    assert ask(build_prompt(DOCUMENT, "What is the rate?"), WHOLE) == "What is the rate?"
    assert ask("x y. " * 5_000, WHOLE) == ("x y. " * 5_000).strip()
