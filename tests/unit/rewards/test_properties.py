"""Properties of every verifier on any text, found by search rather than by example."""

from __future__ import annotations

import string

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hybridflow.config.reward_sections import RulesSection
from hybridflow.rewards.numbers.read_number import parse_quantity
from hybridflow.rewards.registry import Registry
from hybridflow.rewards.text.normalise import ARTICLES, normalise
from hybridflow.types import Scored, ScoreRequest, Unknown, Verdict

STRICT, COMPAT = Registry(RulesSection()), Registry(RulesSection(compat="qwenlong_l1"))
ABILITY = st.sampled_from(["doc-qa", "doc-math", "doc-mc"])
PIECES = st.sampled_from(
    [
        *("the answer is ", "The correct answer is ", "</think>", "<think>", "\\boxed{", "}", "\\frac{1}{2}", "答案是"),
        *("(A)", "B", "Paris", "and", "not", "yes", "no", "$", "%", "-", "(", ")", ",", ".", "1,234.5", "1/2", "e3"),
        *("million", "万", "５", "½", "²", "March 3, 2020", "2020-03-03", "\n", " ", "*", "<|im_end|>", " x 10^3"),
        *("\u200b", "\x00", "=", "≈", "答案："),
    ]
)
TEXT = st.text(max_size=40) | st.lists(PIECES | st.text(max_size=3), max_size=14).map("".join)
PREFIX = st.sampled_from(
    ["", "</think>the answer is ", "<think>x</think> The correct answer is ", "\\boxed{", "答案是"]
)
NOTHING = st.lists(
    st.sampled_from(
        [" ", ".", "*", "a", "The", "an", '"', "\n", "!", "\u201c", "\u3002", "\uff0c", "\u200b", "_", "`", "$"]
    ),
    max_size=6,
).map(" ".join)
WORD = st.text(string.ascii_lowercase, min_size=2, max_size=9)


def verify(registry: Registry, ability: str, text: str, gold: str) -> Verdict:
    return registry.verify(
        ScoreRequest(completion_id="c", data_source="own", ability=ability, ground_truth=gold, text=text)
    )


@pytest.mark.parametrize("registry", [STRICT, COMPAT], ids=["strict", "compat"])
@settings(max_examples=300, deadline=None, derandomize=True)
@given(ABILITY, PREFIX, TEXT, TEXT)
def test_no_text_crashes_a_rule_or_gets_anything_but_0_or_1(
    registry: Registry, ability: str, prefix: str, text: str, gold: str
) -> None:
    verdict = verify(registry, ability, prefix + text, gold)
    assert isinstance(verdict, Unknown) or (verdict.value in (0.0, 1.0) and verdict.rule and verdict.why)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ABILITY, PREFIX, NOTHING, TEXT)
def test_an_empty_prediction_never_passes(ability: str, prefix: str, nothing: str, gold: str) -> None:
    assume(normalise(gold) or not gold.strip())
    verdict = verify(STRICT, ability, prefix + nothing, gold)
    assert isinstance(verdict, Unknown) or verdict.value == 0.0


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ABILITY, TEXT, TEXT)
def test_in_compat_nothing_passes_without_a_closed_thought_and_an_answer(ability: str, text: str, gold: str) -> None:
    verdict = verify(COMPAT, ability, text, gold)
    if isinstance(verdict, Scored) and verdict.value == 1.0:
        assert "</think>" in text and verdict.extracted


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(WORD, min_size=1, max_size=6))
def test_the_gold_itself_passes(words: list[str]) -> None:
    gold = " ".join(words)
    assume(normalise(gold))
    verdict = verify(STRICT, "doc-qa", f"Therefore, the answer is {gold}.", f"Therefore, the answer is {gold}.")
    assert isinstance(verdict, Scored) and verdict.value == 1.0


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(WORD, min_size=2, max_size=6, unique=True), st.data())
def test_a_part_of_the_gold_never_passes(words: list[str], data: st.DataObject) -> None:
    assume(not ARTICLES.intersection(words))
    start = data.draw(st.integers(0, len(words) - 1))
    end = data.draw(st.integers(start, len(words)))
    assume((start, end) != (0, len(words)))
    verdict = verify(STRICT, "doc-qa", f"the answer is {' '.join(words[start:end])}", " ".join(words))
    assert isinstance(verdict, Scored) and verdict.value == 0.0


@settings(max_examples=300, deadline=None, derandomize=True)
@given(WORD, WORD, st.sampled_from(["{0}{1}", "{1}{0}", "{1}{0}{1}", "{1}-{0}", "{0}/{1}"]))
def test_a_gold_inside_a_word_never_passes(gold: str, other: str, form: str) -> None:
    assume(not ARTICLES & {gold, other, gold + other, other + gold} and parse_quantity(gold) is None)
    assume(gold not in ("yes", "no"))
    verdict = verify(STRICT, "doc-qa", f"the answer is {form.format(gold, other)}", gold)
    assert isinstance(verdict, Scored) and verdict.value == 0.0


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    WORD, WORD, st.sampled_from(["not {0}", "{0} or {1}", "{1} and {0}", "{1}, not {0}", "{0}; {1}", "{0}, {1}, {1}x"])
)
def test_a_denied_or_listed_gold_never_passes(gold: str, other: str, form: str) -> None:
    assume(
        gold != other
        and not ARTICLES & {gold, other}
        and gold not in ("yes", "no", "true", "false", "or", "and", "not")
    )
    assume(parse_quantity(gold) is None)
    verdict = verify(STRICT, "doc-qa", f"the answer is {form.format(gold, other)}", gold)
    assert isinstance(verdict, Scored) and verdict.value == 0.0


NUMBER = st.decimals(min_value="0.01", max_value=10**9, places=2, allow_nan=False, allow_infinity=False)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(NUMBER, st.sampled_from(["{:f}", "{:,f}", "${:,f}", "{:f}%", "+{:f}", "{:f} million", "(${:,f})", "-{:,f}"]))
def test_a_number_in_another_sign_scale_or_a_tenth_off_never_passes(number: object, form: str) -> None:
    gold = form.format(number)
    quantity = parse_quantity(gold)
    assert quantity is not None
    value = quantity.value
    wrong = [-value, value * 11 / 10, value * 9 / 10, value * 1000, value / 1000, value * 10]
    right = [value, value * 10_014 / 10_000]
    (right if form == "{:f}%" and abs(value) <= 100 else wrong).append(value / 100)
    for expected, values in ((0.0, wrong), (1.0, right)):
        for other in values:
            verdict = verify(STRICT, "doc-math", f"the answer is {other:f}", gold)
            assert isinstance(verdict, Scored) and verdict.value == expected, (other, gold, verdict)
