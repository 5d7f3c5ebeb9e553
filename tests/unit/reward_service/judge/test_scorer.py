"""Rules first, then the judge: who is asked, with what, and what comes of it."""

from __future__ import annotations

import json
import select
import time

import pytest

from hybridflow.config.judge_section import JudgeSection
from hybridflow.reward_service.judge.scorer import JudgeScorer
from hybridflow.types import Scored, ScoreRequest, Unknown, Verdict
from tests.bench.judge_server import JudgeServer
from tests.unit.reward_service.thread_scorer import ThreadScorer
from tests.unit.rewards.default_rules import verify

QUESTION = "Which city agrees?"
"""The server says YES to it."""


def give_number(request: ScoreRequest) -> Verdict:
    """A verifier of one's own that gives a number alone."""
    return Scored(value=0.25, rule="mine:verify", extracted="", why="as the verifier says")


def score(requests: list[ScoreRequest], scorer: JudgeScorer) -> dict[str, Verdict]:
    try:
        for request in requests:
            scorer.submit(request)
        verdicts: dict[str, Verdict] = {}
        ends_at = time.monotonic() + 30.0
        while len(verdicts) < len(requests) and time.monotonic() < ends_at:
            select.select(scorer.descriptors()[0], [], [], 0.1)
            verdicts |= {request.completion_id: verdict for request, verdict in scorer.take_verdicts()}
        return verdicts
    finally:
        scorer.close()


def request(text: str, question: str = QUESTION, name: str = "c", ability: str = "doc-qa") -> ScoreRequest:
    gold = "(B)" if ability == "doc-mc" else "the City of Light"
    return ScoreRequest(
        completion_id=name, data_source="own", ability=ability, ground_truth=gold, text=text, question=question
    )


def answer_1(body: str) -> str:
    """The prediction that a judge was shown, without its marks."""
    user = json.loads(body)["messages"][1]["content"]
    return " ".join(user.splitlines()[1].split()[3:-1])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<think>the answer is Rome</think> Therefore, the answer is Paris. It is in France.", "Paris"),
        ("<thinking>Rome?</thinking>\nI would say Paris", "I would say Paris"),
    ],
)
def test_after_a_verifier_that_gives_a_number_the_answer_or_the_response_is_judged(text: str, shown: str) -> None:
    with JudgeServer().serving() as server:
        verdicts = score([request(text)], JudgeScorer(ThreadScorer(give_number), JudgeSection(endpoints=[server.url])))
    verdict = verdicts["c"]
    assert isinstance(verdict, Scored) and (verdict.value, verdict.rule_value, verdict.judge_vote) == (1.0, 0.25, "yes")
    assert [answer_1(body) for body in server.bodies] == [shown]


def test_what_the_judge_cannot_change_is_not_asked() -> None:
    requests = [
        request("The answer is the City of Light.", name="right"),
        request("I do not know.", name="no answer"),
        request("<think>The answer is Paris.", name="thought"),
        request("The correct answer is (A)", name="choice", ability="doc-mc"),
    ]
    with JudgeServer().serving() as server:
        verdicts = score(requests, JudgeScorer(ThreadScorer(verify), JudgeSection(endpoints=[server.url])))
    assert {name: verdict.value for name, verdict in verdicts.items() if isinstance(verdict, Scored)} == {
        "right": 1.0, "no answer": 0.0, "thought": 0.0, "choice": 0.0
    }  # fmt: skip
    assert server.bodies == []


def test_a_row_without_a_question_is_unknown_with_its_reason_and_nothing_is_sent() -> None:
    with JudgeServer().serving() as server:
        section = JudgeSection(endpoints=[server.url], question_column="query")
        verdicts = score([request("The answer is Paris.", question="")], JudgeScorer(ThreadScorer(verify), section))
    verdict = verdicts["c"]
    assert isinstance(verdict, Unknown) and "no question for the judge: extra_info.query is no text" in verdict.why
    assert verdict.extracted == "Paris" and server.bodies == []


def test_tags_of_thoughts_by_configuration() -> None:
    with JudgeServer().serving() as server:
        scorer = JudgeScorer(ThreadScorer(give_number), JudgeSection(endpoints=[server.url]), (("<muse>", "</muse>"),))
        score([request("<muse>Rome</muse>Paris")], scorer)
    assert [answer_1(body) for body in server.bodies] == ["Paris"]
