"""Answers that a careful reader passes or fails, and the rules: hand-written rows, and the shared cases beside the
checkout.

Each line of `reader_pairs.jsonl` is [theme, ability, answer, gold, right], in the kinds of public bug reports on answer
scoring. An answer stands in the sentence of its ability, unless it begins with "@": it is then a whole response. The
rows were written before the rules were run on them.

Not covered: whether a model judge rescues the right answers that the rules leave at 0.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from hybridflow.types import Scored, ScoreRequest, Verdict
from tests.unit.rewards.default_rules import verify

SHARED = Path(__file__).parents[3].parent / "shared/data/verdict_cases.jsonl"
THOUGHT = "<think>\nI look at the table.\n</think>\n\n"

Row = tuple[str, str, str, int]


def read_themes() -> dict[str, list[Row]]:
    """(ability, answer, gold, right) of each row, by theme."""
    themes: defaultdict[str, list[Row]] = defaultdict(list)
    with Path(__file__).with_name("reader_pairs.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            theme, ability, answer, gold, right = json.loads(line)
            themes[theme].append((ability, answer, gold, right))
    return dict(themes)


THEMES = read_themes()


def judge(ability: str, response: str, gold: str) -> Verdict:
    return verify(ScoreRequest(completion_id="c", data_source="own", ability=ability, ground_truth=gold, text=response))


def respond(ability: str, answer: str) -> str:
    if answer.startswith("@"):
        opens_thought = answer[1:2] in ("<", "[") and not answer.startswith("@<answer>")
        return ("" if opens_thought else THOUGHT) + answer[1:]
    sentence = "The correct answer is {}." if ability == "doc-mc" else "Therefore, the answer is {}."
    return THOUGHT + sentence.format(answer)


@pytest.mark.parametrize("theme", THEMES)
def test_the_rules_say_what_a_careful_reader_says(theme: str) -> None:
    differing: list[tuple[Row, Verdict]] = []
    for row in THEMES[theme]:
        ability, answer, gold, right = row
        verdict = judge(ability, respond(ability, answer), gold)
        if not isinstance(verdict, Scored) or verdict.value != right:
            differing.append((row, verdict))
    assert differing == []


def test_the_rows_are_many_and_hold_both_verdicts_of_each_theme() -> None:
    rows = [row for rows in THEMES.values() for row in rows]
    assert len(rows) == len(set(rows)) >= 2446
    assert all({row[3] for row in rows} == {0, 1} for rows in THEMES.values())


def test_an_answer_that_fails_names_the_words_that_nothing_accounts_for() -> None:
    for ability, answer, gold, word in (
        ("doc-qa", "the successor of Tim Cook", "Tim Cook", "'successor'"),
        ("doc-qa", "Paris, maybe London", "Paris", "'maybe', 'london'"),
        ("doc-math", "in Note 5", "5", "'note'"),
        ("doc-math", "5 May", "5", "'may'"),
    ):
        verdict = judge(ability, respond(ability, answer), gold)
        assert isinstance(verdict, Scored) and verdict.value == 0.0 and word in verdict.why


@pytest.mark.skipif(not SHARED.exists(), reason="the shared cases are not beside this checkout")
def test_of_the_shared_cases_no_wrong_answer_passes_and_few_right_ones_fail() -> None:
    cases = [json.loads(line) for line in SHARED.read_text(encoding="utf-8").splitlines()]
    verdicts = [(case, judge(case["ability"], case["response"], case["gold"])) for case in cases]
    passed = [isinstance(verdict, Scored) and verdict.value == 1.0 for _, verdict in verdicts]
    wrong = [case for (case, _), passes in zip(verdicts, passed, strict=True) if passes and not case["right"]]
    lost = [case for (case, _), passes in zip(verdicts, passed, strict=True) if not passes and case["right"]]
    assert (len(cases), sum(case["right"] for case in cases)) == (264, 134)
    assert wrong == []
    # One of them calls "5 ㎎" (milligrams) a right answer to "5 km".
    assert [(case["gold"], case["kind"]) for case in lost] == [("5 km", "compatibility characters")]
