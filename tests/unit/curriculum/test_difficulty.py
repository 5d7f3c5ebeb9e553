"""Worked by hand: rewards 1, 0, 0, 0 have mean 1/4; with epsilon 1/8 the difficulty is 1 / (3/8) = 8/3."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hybridflow.curriculum.difficulty import DifficultyTable, compute_difficulty, filter_by_difficulty
from hybridflow.types import Group
from tests.builders import build_group, build_prompt, build_request

EPSILON = 0.125


def group_of(prompt_id: str, rewards: list[float | None]) -> Group:
    return build_group(build_request(build_prompt(prompt_id), len(rewards)), rewards)


def table_of(**rewards: list[float | None]) -> DifficultyTable:
    table = DifficultyTable()
    table.observe([group_of(prompt_id, of_group) for prompt_id, of_group in rewards.items()])
    return table


def test_the_latest_group_measures_and_unknown_verdicts_do_not() -> None:
    table = table_of(a=[0.0, 0.0], b=[None, 0.5, 1.0], c=[None, None])
    assert (table.mean("a"), table.mean("b"), table.mean("c")) == (0.0, 0.75, None)
    table.observe([group_of("a", [1.0, 0.0, 0.0, 0.0]), group_of("b", [None, None])])
    assert (table.mean("a"), table.mean("b")) == (0.25, 0.75)
    assert compute_difficulty(0.25, EPSILON) == pytest.approx(8 / 3)


def test_all_wrong_is_measured_and_earned_nothing() -> None:
    table = table_of(wrong=[0.0, None, 0.0], hard=[0.0, 1.0], unknown=[None])
    assert [table.is_all_wrong(name) for name in ("wrong", "hard", "unknown", "never seen")] == [True] + [False] * 3


def test_table_to_read_begins_with_the_hardest() -> None:
    rows = table_of(b=[1.0, 0.0], z=[0.0, 0.0], a=[0.0, None]).rows(EPSILON)
    assert [(row["prompt_id"], row["num_completions"], row["difficulty"]) for row in rows] == [
        ("a", 1, 8.0),
        ("z", 2, 8.0),
        ("b", 2, 1.6),
    ]


def test_state_is_json_and_gives_the_same_table() -> None:
    table = table_of(a=[0.1, 0.2], b=[None, 1.0])
    table.observe([group_of("a", [0.3, 0.1, 0.7])])
    again = DifficultyTable()
    again.load_state_dict(json.loads(json.dumps(table.state_dict())))
    assert again.rows(EPSILON) == table.rows(EPSILON) and again.rows(EPSILON)[0]["num_times"] == 2


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({}, "a table by prompt id"),
        ({"prompts": []}, "a table by prompt id"),
        ({"prompts": {"p": [0, 0.0, 1]}}, "prompt 'p': expected"),
        ({"prompts": {"p": [1, float("nan"), 1]}}, "prompt 'p': expected"),
        ({"prompts": {"p": [1, 0.5]}}, "prompt 'p': expected"),
    ],
)
def test_a_state_that_is_none_is_refused(state: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DifficultyTable().load_state_dict(state)


def test_filter_keeps_what_lies_within_and_what_nobody_measured() -> None:
    table = table_of(a=[0.0, 0.0], b=[0.5, 0.5], c=[1.0, 1.0])
    kept, dropped = filter_by_difficulty("abcd", table, lowest=0.1, highest=0.9)
    assert (kept, dropped) == (["b", "d"], {"too_hard": ["a"], "too_easy": ["c"]})
    assert filter_by_difficulty("abcd", table) == (list("abcd"), {})
