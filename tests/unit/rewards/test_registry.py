"""Hand-written cases of every verifier, through the door that the reward workers use."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hybridflow.rewards.rules.docmath import verify_docmath
from hybridflow.rewards.rules.docqa import verify_docqa
from hybridflow.rewards.rules.multiple_choice import verify_multiple_choice
from hybridflow.rewards.text.normalise import normalise
from hybridflow.types import Scored, ScoreRequest, Unknown, Verdict
from tests.unit.rewards.default_rules import RULES, verify

TATQA = Path(__file__).parents[3].parent / "shared/data/tatqa_docqa.jsonl"


def score(ability: str, text: str, gold: str, data_source: str = "synth") -> Verdict:
    return verify(
        ScoreRequest(completion_id="c", data_source=data_source, ability=ability, ground_truth=gold, text=text)
    )


DOCQA = [
    ("The answer is yen.", "yen", 1),
    ("Therefore, the answer is yen", "Therefore, the answer is yen.", 1),
    ("THE ANSWER IS Yen!", "the answer is yen", 1),
    ("The answer is **the Japanese yen**.", "Japanese Yen", 1),
    ('The answer is "Sterling".', "Sterling", 1),
    ("the answer is: `Sterling`", "Sterling", 1),
    ("The answer is yen. No, the answer is euro.", "euro", 1),
    ("The answer is yen. No, the answer is euro.", "yen", 0),
    ("<think>the answer is yen</think>The answer is euro.", "yen", 0),
    ("<think>the answer is euro</think>The answer is yen.", "yen", 1),
    ("<think>the answer is yen</think>I do not know.", "yen", 0),
    ("<think>so the answer is yen", "yen", 0),
    ("reasoning</think>\nThe answer is yen.<|im_end|>", "yen", 1),
    ("The answer is yen<\uff5cend\u2581of\u2581sentence\uff5c>", "yen", 1),
    ("yen", "yen", 0),
    ("The answer is", "yen", 0),
    ("The answer is .", "yen", 0),
    ("The answer is the", "the yen", 0),
    ("The answer is a", "yen and a dollar", 0),
    ("", "yen", 0),
    ("The answer is y", "yen", 0),
    ("The answer is yen or euro", "yen", 0),
    ("The answer is not yen", "yen", 0),
    ("The answer is January 1 2018", "January 1, 2018", 1),
    ("The answer is U.S.A.", "USA", 1),
    ("The answer is a stock repurchase program.", "stock repurchase program", 1),
    ("The answer is $17,116", "17116", 1),
    ("The answer is 13", "1.3", 0),
    ("The answer is 298 million", "\u2212298 million", 0),
    ("The answer is -298 million", "\u2212298 million", 1),
    ("The answer is \uff39\uff25\uff2e", "yen", 1),
    ("The answer is \u5317\u4eac\u3002", "\u5317\u4eac", 1),
    ("The  Answer\nIs   two\twords", "two words", 1),
]
DOCMATH = [
    ("the answer is 5", "5", 1),
    ("the answer is 5.0.", "Therefore, the answer is 5.", 1),
    ("the answer is **5**", "5", 1),
    ("the answer is 1,234,567.5", "1234567.5", 1),
    ("the answer is $1,234", "1234", 1),
    ("the answer is \u00a31,234", "1234", 1),
    ("the answer is \u20ac1,234", "1234", 1),
    ("the answer is 40%", "40 percent", 1),
    ("the answer is 6.45%", "6.4492577269408615", 1),
    ("the answer is 0.4", "40%", 1),
    ("the answer is (1.5)", "-1.5", 1),
    ("the answer is ($1,500)", "-1500", 1),
    ("the answer is -(5)", "-5", 1),
    ("the answer is (-5)", "-5", 1),
    ("the answer is -$5", "-5", 1),
    ("the answer is $-5", "-5", 1),
    ("the answer is \u22125", "-5", 1),
    ("the answer is 5", "-5", 0),
    ("the answer is -5", "5", 0),
    ("the answer is 1.5e3", "1500", 1),
    ("the answer is 1.5E-3", "0.0015", 1),
    ("the answer is 1.5 x 10^3", "1500", 1),
    ("the answer is 100.15", "100", 1),
    ("the answer is 100.1501", "100", 0),
    ("the answer is 99.85", "100", 1),
    ("the answer is 99.84", "100", 0),
    ("the answer is 0", "0", 1),
    ("the answer is -0.0", "0", 1),
    ("the answer is 0.0001", "0", 0),
    ("the answer is 500", "5", 0),
    ("the answer is .5", "0.5", 1),
    ("the answer is 60.5 million", "60500 thousand", 1),
    ("the answer is 60,500,000", "60.5 million", 1),
    ("the answer is 60.5", "60.5 million", 0),
    ("the answer is 60.5 thousand", "60.5 million", 0),
    ("the answer is 12 years", "12", 1),
    ("the answer is about 12", "12", 1),
    ("the answer is 12. That is more than the 10 of 2018.", "12", 1),
    ("the answer is 5 or 6", "5", 0),
    ("the answer is 10/2", "5", 0),
    ("the answer is 12,34", "1234", 0),
    ("the answer is 1e9999", "5", 0),
    ("the answer is __import__('os')", "5", 0),
    ("the answer is", "5", 0),
    ("5", "5", 0),
    ("the answer is nan", "5", 0),
    ("the answer is November 12, 2019", "November 12, 2019", 1),
    ("the answer is November", "November 12, 2019", 0),
    ("the answer is the", "none", 0),
]
CHOICE = [
    ("The correct answer is (B).", "The correct answer is (B)", 1),
    ("The correct answer is B", "(B)", 1),
    ("the correct answer is **(B)**", "B", 1),
    ("The answer is B.", "b", 1),
    ("The correct answer is option (C)", "C", 1),
    ("The correct answer is (A). Wait, the correct answer is (D).", "D", 1),
    ("The correct answer is (A). Wait, the correct answer is (D).", "A", 0),
    ("I pick (C)", "C", 1),
    ("I compare (A) and (B) and pick (C)", "A", 0),
    ("The correct answer is (A) or (B)", "A", 0),
    ("The correct answer is A, B, C or D", "A", 0),
    ("The correct answer is (E)", "A", 0),
    ("The correct answer is a guess", "A", 0),
    ("The correct answer is Apple", "A", 0),
    ("B", "B", 0),
    ("", "A", 0),
    ("<think>The correct answer is (A)</think>", "A", 0),
    ("<think>(A)</think> The correct answer is (B) because it says so", "B", 1),
]
CASES = [("doc-qa", *row) for row in DOCQA] + [("doc-math", *row) for row in DOCMATH]
CASES += [("doc-mc", *row) for row in CHOICE]


@pytest.mark.parametrize(("ability", "text", "gold", "expected"), CASES)
def test_case(ability: str, text: str, gold: str, expected: int) -> None:
    verdict = score(ability, text, gold)
    assert isinstance(verdict, Scored), verdict
    assert verdict.value == expected, verdict


@pytest.mark.parametrize(("ability", "gold"), [("doc-qa", "."), ("doc-qa", ""), ("doc-mc", "E"), ("doc-math", " . ")])
def test_a_gold_that_says_nothing_is_unknown_and_not_zero(ability: str, gold: str) -> None:
    assert isinstance(score(ability, f"the answer is {gold}", gold), Unknown)


@pytest.mark.parametrize(
    ("data_source", "ability", "verifier"),
    [
        ("long_toc_choices_0_20000", "doc-mc", verify_multiple_choice),
        ("long_toc_choices_40000_plus", "", verify_multiple_choice),
        ("own", "doc-mc", verify_multiple_choice),
        ("docmath_20000_40000", "doc-math", verify_docmath),
        ("own", "doc-math", verify_docmath),
        ("musique_0_20000", "doc-qa", verify_docqa),
        ("qa_test", "something new", verify_docqa),
    ],
)
def test_the_verifier_follows_source_then_ability(data_source: str, ability: str, verifier: object) -> None:
    assert RULES.choose(data_source, ability) is verifier


def test_the_verdict_names_rule_and_what_was_extracted() -> None:
    verdict = score("doc-math", "Therefore, the answer is $5 million.", "5,001 thousand")
    assert verdict == Scored(
        value=1.0,
        rule="docmath_number",
        extracted="$5 million",
        why="5000000 dollar is within 0.15% of 5001000",
        predicted_form="5000000 dollar",
        gold_form="5001000",
    )


ABILITY = st.sampled_from(["doc-qa", "doc-math", "doc-mc"])
ANSWER_LIKE = st.text(alphabet="theansweri ABCD()<>/k-+.,$%0159eEx^*\\\n|", max_size=60)


@settings(max_examples=300, deadline=None)
@given(ABILITY, st.text() | ANSWER_LIKE, st.text() | ANSWER_LIKE, st.sampled_from(["", "the answer is ", "</think>"]))
def test_no_text_and_no_gold_crashes_a_verifier(ability: str, text: str, gold: str, prefix: str) -> None:
    verdict = score(ability, prefix + text, gold)
    assert isinstance(verdict, Unknown) or verdict.value in (0.0, 1.0)


EMPTY = st.lists(st.sampled_from([" ", ".", "*", "a", "The", "an", '"', "\n", "!", "\u201c"]), max_size=6).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(ABILITY, EMPTY, st.text() | ANSWER_LIKE, st.sampled_from(["", "the answer is ", "The correct answer is "]))
def test_an_empty_prediction_never_passes(ability: str, empty: str, gold: str, prefix: str) -> None:
    assume(normalise(gold) or not gold.strip())
    verdict = score(ability, prefix + empty, gold)
    assert isinstance(verdict, Unknown) or verdict.value == 0.0


SLOW_PARTS = ["1,", "(", "- ", "= ", "1.", "the answer is ", "A or ", "<|", ". "]
HOSTILE = ["the answer is A," + "*" * 200_000 + "x"]
HOSTILE += ["the answer is " + part * 40_000 for part in SLOW_PARTS]
HOSTILE += ["the" + " " * 200_000, "(" + " " * 200_000, "<think>" * 40_000, "</think>" * 40_000, "the " * 60_000]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: f"{text[:24]!r}")
@pytest.mark.parametrize("ability", ["doc-qa", "doc-math", "doc-mc"])
def test_a_text_made_to_be_slow_is_judged_in_time(ability: str, text: str) -> None:
    start = time.process_time()
    verdict = score(ability, text, "B" if ability == "doc-mc" else "5")
    assert time.process_time() - start < 2.0
    assert isinstance(verdict, Scored) and verdict.value == 0.0


@pytest.mark.skipif(not TATQA.exists(), reason="the TAT-QA rows are not in this checkout's neighbour folder")
def test_every_real_gold_scores_itself() -> None:
    rows = [json.loads(line) for line in TATQA.read_text().splitlines()]
    golds = [(row["ability"], row["data_source"], row["reward_model"]["ground_truth"]) for row in rows]
    verdicts = [score(ability, gold, gold, source) for ability, source, gold in golds]
    assert sum(verdict.value for verdict in verdicts if isinstance(verdict, Scored)) == len(rows) == 120
