"""Rows with several right answers: any of them earns the reward, and a gold that cannot be read is not a no."""

from __future__ import annotations

import pytest

from hybridflow.rewards.judge_verdict import told_to_judge
from hybridflow.types import Scored, ScoreRequest, Unknown
from tests.unit.rewards.default_rules import verify


def request(answer: str, *golds: str, ability: str = "doc-qa") -> ScoreRequest:
    return ScoreRequest(
        completion_id="c",
        data_source="mine",
        ability=ability,
        ground_truth=golds[0],
        alternatives=list(golds[1:]),
        text=f"Therefore, the answer is {answer}.",
    )


@pytest.mark.parametrize(
    ("answer", "golds", "ability", "value"),
    [
        ("NYC", ("New York City", "NYC"), "doc-qa", 1.0),
        ("New York City", ("New York City", "NYC"), "doc-qa", 1.0),
        ("Boston", ("New York City", "NYC"), "doc-qa", 0.0),
        ("5", ("4", "5"), "doc-math", 1.0),
        ("6", ("4", "5"), "doc-math", 0.0),
        ("(B)", ("A", "B"), "doc-mc", 1.0),
        ("(C)", ("A", "B"), "doc-mc", 0.0),
        ("(B)", ("E", "B"), "doc-mc", 1.0),
    ],
)
def test_any_gold_is_right(answer: str, golds: tuple[str, ...], ability: str, value: float) -> None:
    verdict = verify(request(answer, *golds, ability=ability))
    assert isinstance(verdict, Scored) and verdict.value == value


def test_gold_that_cannot_be_compared_with_is_not_a_no() -> None:
    verdict = verify(request("(C)", "B", "E", ability="doc-mc"))
    assert isinstance(verdict, Unknown) and "'E'" in verdict.why


def test_judge_is_told_all() -> None:
    assert told_to_judge(["Therefore, the answer is Paris.", "City of Paris"]) == "Paris or City of Paris"
    assert told_to_judge(["Paris"]) == "Paris"
