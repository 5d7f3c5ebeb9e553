"""Where the answer of a completion stands, and how much of the text is the answer."""

from __future__ import annotations

import pytest

from hybridflow.rewards.extraction.extract import count_sentences, extract_answer, extract_gold
from hybridflow.rewards.text.markup import drop_latex, find_last_boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Therefore, the answer is Paris.", "Paris"),
        ("the answer is A, no: THE ANSWER IS **Rome**!", "Rome"),
        ("the answer is U.S. Steel. It is large.", "U.S. Steel"),
        ("the answer is Dr. J. Smith. He is old.", "Dr. J. Smith"),
        ("the answer is No. 5. It is old.", "No. 5"),
        ("the answer is 12.5. That is more.", "12.5"),
        ("the answer is:\n\nParis\n\nI looked.", "Paris"),
        ("the answer is Paris\nThe table says so", "Paris"),
        ("the answer is:\n- Paris\n- Rome", "- Paris\n- Rome"),
        ("the answer is:\n1. Paris\n2. Rome", "1. Paris\n2. Rome"),
        ("\\boxed{a_{1}}. Then \\boxed{b^{2}}", "b^{2}"),
        ("\\boxed{60.5} million dollars", "60.5 million dollars"),
        ("the answer is \\boxed{open", ""),
        ("\\boxed{Rome}. So the answer is Paris", "Paris"),
        ("**Final Answer**: Paris", "Paris"),
        ("Question: where?\nAnswer: Paris\n", "Paris"),
        ("The correct answer is Paris", "Paris"),
        ("答案：「北京」。谢谢", "北京"),
        ("an answer is Paris", ""),
        ("the answering is Paris", ""),
        ("<think>the answer is Rome", ""),
        ("<think>the answer is Rome</think>", ""),
    ],
)
def test_the_answer_stands_behind_the_last_mark_up_to_the_end_of_its_sentence(text: str, answer: str) -> None:
    assert extract_answer(text).text == answer


@pytest.mark.parametrize(
    ("text", "second_thought"),
    [
        ("the answer is Paris. Maybe Rome", "Maybe Rome"),
        ("the answer is Paris. Perhaps it is Rome", "Perhaps it is Rome"),
        ("the answer is 5\nor 6", "or 6"),
        ("the answer is Paris. It is in France. Maybe Rome.", "Maybe Rome."),
    ],
)
def test_an_answer_that_is_taken_back_is_read_whole(text: str, second_thought: str) -> None:
    assert extract_answer(text) == (text.removeprefix("the answer is ").rstrip("."), second_thought)


@pytest.mark.parametrize(
    "text",
    [
        "the answer is Paris. No, Rome",
        "the answer is Paris. Wait, it is Rome.",
        "the answer is Oslo. Sorry, Paris. I mean Rome. It is in Italy.",
    ],
)
def test_the_answer_that_a_correction_puts_in_place_of_the_first_one_stands(text: str) -> None:
    assert extract_answer(text) == ("Rome", "")


@pytest.mark.parametrize(
    ("gold", "read"),
    [
        ("It rose", "It rose"),
        ("It rose. It fell", "It rose. It fell"),
        ("One is. Two is. Three is. Four", "It rose. It fell. Both did"),
    ],
)
def test_an_answer_is_read_for_as_many_sentences_as_the_gold_has(gold: str, read: str) -> None:
    answer = extract_answer("the answer is It rose. It fell. Both did.", num_sentences=count_sentences(gold))
    assert answer == (read, "")


@pytest.mark.parametrize(
    ("stored", "gold"),
    [
        ("Therefore, the answer is 6.4492577269408615.", "6.4492577269408615"),
        ("Paris", "Paris"),
        ("Therefore, the answer is below under “Segment Results.”.", 'below under "Segment Results'),
        ("Therefore, the answer is It rose. It fell.", "It rose. It fell"),
        ("Therefore, the answer is .", ""),
        (" . ", ""),
    ],
)
def test_a_gold_is_read_whole_in_its_sentence_or_bare(stored: str, gold: str) -> None:
    assert extract_gold(stored).text == gold


def test_the_last_box_is_found_with_its_braces_paired() -> None:
    found = find_last_boxed(r"\boxed{1} then \boxed{\frac{a}{b} \} c} million")
    assert found == (15, r"\frac{a}{b} \} c", " million")
    assert find_last_boxed("no box") is None


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (r"\text{the yen}", "the yen"),
        (r"\textbf{\text{yen}}", "yen"),
        (r"$5\%$", "5%"),
        ("$5 to $6", "$5 to $6"),
        (r"2\frac{1}{2}", "2 1/2"),
        (r"1{,}234", "1,234"),
        ("{a}", "{a}"),
    ],
)
def test_latex_is_read_as_it_looks(text: str, plain: str) -> None:
    assert drop_latex(text).strip() == plain
