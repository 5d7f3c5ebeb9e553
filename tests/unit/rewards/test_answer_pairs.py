"""The table of hand-written answers, under the default rules and under `compat = "qwenlong_l1"`.

Not covered: whether a model judge would rescue what the rules leave at 0.
"""

from __future__ import annotations

from collections import Counter

import pytest

from hybridflow.config.reward_sections import RulesSection
from hybridflow.rewards.registry import Registry
from hybridflow.types import Scored, ScoreRequest
from tests.unit.rewards import answer_pairs
from tests.unit.rewards.more_answer_pairs import MORE_THEMES

THEMES = answer_pairs.THEMES | MORE_THEMES
ABILITIES = {"docqa": "doc-qa", "docmath": "doc-math", "choice": "doc-mc"}
SENTENCES = {"choice": "The correct answer is {}."}
STRICT, COMPAT = Registry(RulesSection()), Registry(RulesSection(compat="qwenlong_l1"))


def rows() -> list[tuple[str, str, str, str, int | None, int | None]]:
    """(theme, kind, response, gold as stored, strict, compat) of every pair."""
    found = []
    for theme, pairs in THEMES.items():
        for kind, answer, gold, strict, compat in pairs:
            sentence = SENTENCES.get(kind, "Therefore, the answer is {}.")
            response = answer_pairs.THOUGHT + sentence.format(answer)
            found.append((theme, kind, response, sentence.format(gold), strict, compat))
    for theme, pairs in answer_pairs.RESPONSES.items():
        found += [(theme, *pair) for pair in pairs]
    return found


ROWS = rows()


def judge(registry: Registry, kind: str, response: str, gold: str) -> tuple[float | None, str]:
    verdict = registry.verify(
        ScoreRequest(completion_id="c", data_source="own", ability=ABILITIES[kind], ground_truth=gold, text=response)
    )
    return (verdict.value if isinstance(verdict, Scored) else None), str(verdict)


@pytest.mark.parametrize(("theme", "kind", "response", "gold", "strict", "compat"), ROWS)
def test_strict(theme: str, kind: str, response: str, gold: str, strict: int | None, compat: int | None) -> None:
    value, verdict = judge(STRICT, kind, response, gold)
    assert value == strict, f"{theme}: {verdict}"


@pytest.mark.parametrize(("theme", "kind", "response", "gold", "strict", "compat"), ROWS)
def test_compat(theme: str, kind: str, response: str, gold: str, strict: int | None, compat: int | None) -> None:
    value, verdict = judge(COMPAT, kind, response, gold)
    assert value == compat, f"{theme}: {verdict}"


def test_the_table_is_large_and_has_no_pair_twice() -> None:
    assert len(ROWS) >= 600
    assert [row for row, times in Counter(row[1:4] for row in ROWS).items() if times > 1] == []
    assert min(len(pairs) for pairs in (THEMES | answer_pairs.RESPONSES).values()) >= 7


def test_the_table_holds_both_verdicts_of_every_kind_in_both_modes() -> None:
    for kind in ABILITIES:
        verdicts = {(row[4], row[5]) for row in ROWS if row[1] == kind}
        assert {(1, 1), (1, 0), (0, 1), (0, 0)} <= verdicts
