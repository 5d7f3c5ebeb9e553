"""Thoughts of a completion, and what is left to be an answer."""

from __future__ import annotations

import time

import pytest

from hybridflow.config.reward_sections import THINKING_TAGS, RulesSection
from hybridflow.rewards.registry import Registry
from hybridflow.rewards.text.thinking import after_thinking
from hybridflow.types import Scored, ScoreRequest

CHANNELS = "<|channel|>analysis<|message|>7?<|end|><|start|>assistant<|channel|>final<|message|>It is 9.<|return|>"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("It is 9.", "It is 9."),
        ("<think>7?</think>It is 9.", "It is 9."),
        ("7?</think>It is 9.", "It is 9."),  # opened in the prompt
        ("<THINKING>7?</Thinking>It is 9.", "It is 9."),
        ("< think budget='5'>7?</ think >It is 9.", "It is 9."),
        ("<think>a</think><reasoning>b</reasoning>It is 9.", "It is 9."),
        ("<think>so <reasoning> is a tag</think>It is 9.", "It is 9."),
        ("<think>so <think> is a tag</think>It is 9.", "It is 9."),
        ("[THINK]7?[/THINK]It is 9.", "It is 9."),
        ("\u25c1think\u25b77?\u25c1/think\u25b7It is 9.", "It is 9."),
        (CHANNELS, "It is 9.<|return|>"),
        (CHANNELS.replace("analysis", "commentary"), "It is 9.<|return|>"),
        ("analysisWe say 7assistantfinalIt is 9.", "It is 9."),
        ("Analysis: it is 9.", "Analysis: it is 9."),
        ("analysis of it: 9.", "analysis of it: 9."),
        ("I think it is <5.", "I think it is <5."),
    ],
)
def test_what_stands_behind_the_last_closed_thought_is_shown(text: str, shown: str) -> None:
    assert after_thinking(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        *("<think>It is 9.", "<Thinking >It is 9.", "[THINK]It is 9.", "analysisIt is 9."),
        "<think>a <reasoning>b</reasoning> It is 9.",
        "<think>a</think><thought>It is 9.",
        "It is 7. <think>It is 9.",
        "<think>It is 9.</think>",
        CHANNELS.partition("<|end|>")[0],
    ],
)
def test_what_is_not_closed_is_no_answer(text: str) -> None:
    assert after_thinking(text) == ""


@pytest.mark.parametrize("pair", THINKING_TAGS)
def test_each_default_pair_opens_and_closes_a_thought(pair: tuple[str, str]) -> None:
    assert after_thinking(f"{pair[0]}Hm.{pair[1]}It is 9.") == "It is 9."
    assert after_thinking(f"{pair[0]}Hm.") == ""


@pytest.mark.parametrize("ability", ["doc-qa", "doc-math", "doc-mc"])
def test_tags_of_the_configuration_take_the_place_of_the_default_ones(ability: str) -> None:
    registry = Registry(RulesSection.model_validate({"thinking_tags": [["<plan>", "</plan>"]]}))
    gold = "B" if ability == "doc-mc" else "7"
    for opening, expected in (("<plan>", 0.0), ("<think>", 1.0)):
        verdict = registry.verify(
            ScoreRequest(
                completion_id="c",
                data_source="own",
                ability=ability,
                ground_truth=gold,
                text=f"{opening}The answer is {gold}.",
            )
        )
        assert isinstance(verdict, Scored) and verdict.value == expected


@pytest.mark.parametrize("pair", [["", "</x>"], ["<x>", "<x>"], ["<x>", " "]])
def test_a_pair_that_marks_nothing_is_refused(pair: list[str]) -> None:
    with pytest.raises(ValueError, match=r"marks no thought.*Remedy"):
        RulesSection.model_validate({"thinking_tags": [pair]})


def test_many_tags_take_time_in_proportion() -> None:
    for part in ("<think>", "</think>", "<", "<think ", "<thinking></thinking>", "analysis"):
        start = time.process_time()
        after_thinking("<think>" * 15_000 + part * (120_000 // len(part)))
        assert time.process_time() - start < 1.0, part
