"""An answer of several candidates never earns more than one gold, however they are joined."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hybridflow.types import Scored, ScoreRequest
from tests.unit.rewards.default_rules import verify

NAMES = st.sampled_from(
    [
        *("Paris", "London", "Rome", "The Godfather", "Jaws", "Tim Cook", "Mary Jones", "yen", "euro", "Siemens"),
        *("the tenant", "the landlord", "clause 3", "Note 5", "stock repurchase program", "Norway", "北京", "上海"),
        *("approved the merger", "the lease", "March 3, 2020", "2019", "CO2 emissions", "AT&T", "Class A", "yes", "no"),
    ]
)
NUMBERS = st.sampled_from(
    [
        "5",
        "6",
        "12.5%",
        "$5 million",
        "7 years",
        "-3",
        "0.125",
        "1,234",
        "60 miles",
        "three",
        "三千",
        "1/2",
        "8%",
        "9 bps",
    ]
)
LETTERS = st.sampled_from(["A", "B", "C", "D", "(A)", "(C)", "option B", "option D"])
JOINTS = st.sampled_from(
    [
        *(
            ", ",
            " ",
            " or ",
            " and ",
            "; ",
            " / ",
            "/",
            " - ",
            " \u2013 ",
            " | ",
            ", maybe ",
            ". ",
            ". Maybe ",
            ". Or ",
            "? ",
        ),
        *(
            " (or ",
            " (",
            ", also ",
            ", possibly ",
            " rather than ",
            " as well as ",
            " plus ",
            " + ",
            " & ",
            "\n",
            "\n- ",
            ": ",
        ),
        *(
            " then ",
            " to ",
            " through ",
            " versus ",
            ", but ",
            ", not ",
            " = ",
            " → ",
            ", else ",
            " either ",
            "、",
            "或",
            "和",
        ),
        *(
            " because ",
            ". It could also be ",
            ". It is ",
            ". Alternatively ",
            " in other words ",
            ", i.e. ",
            "; if not, ",
        ),
        *(
            " \\boxed{",
            "} or \\boxed{",
            " <answer>",
            ". The answer may be ",
            " aka ",
            ", see ",
            " as stated in ",
            "... ",
        ),
    ]
)


def earns(ability: str, response: str, gold: str) -> bool:
    verdict = verify(
        ScoreRequest(completion_id="c", data_source="own", ability=ability, ground_truth=gold, text=response)
    )
    return isinstance(verdict, Scored) and verdict.value == 1.0


@pytest.mark.parametrize(
    ("ability", "candidates"), [("doc-qa", NAMES | NUMBERS), ("doc-math", NUMBERS), ("doc-mc", LETTERS)]
)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_joined_answers_earn_one_gold_at_most(
    ability: str, candidates: st.SearchStrategy[str], data: st.DataObject
) -> None:
    golds = data.draw(st.lists(candidates, min_size=2, max_size=4, unique=True))
    alone = [[gold for gold in golds if earns(ability, f"The answer is {one}.", gold)] for one in golds]
    assume(all(len(same) == 1 for same in alone))  # "0.125" and "12.5%" are one value
    joints = [data.draw(JOINTS) for _ in golds[1:]]
    answer = golds[0] + "".join(joint + gold for joint, gold in zip(joints, golds[1:], strict=True))
    sentence = "The correct answer is {}." if ability == "doc-mc" else "Therefore, the answer is {}."
    assert sum(earns(ability, sentence.format(answer), gold) for gold in golds) <= 1, answer


@pytest.mark.parametrize("ability", ["doc-qa", "doc-math"])
@pytest.mark.parametrize(
    "joint", [", ", " ", " or ", " and ", "; ", " / ", " (or ", ", maybe ", ". Maybe ", " + ", " to "]
)
@pytest.mark.parametrize(
    ("first", "second"), [("5", "6"), ("12%", "15%"), ("$5 million", "$6 million"), ("7 years", "9 years")]
)
def test_two_numbers_that_are_joined_earn_neither(ability: str, joint: str, first: str, second: str) -> None:
    response = f"Therefore, the answer is {first}{joint}{second}."
    assert not any(earns(ability, response, gold) for gold in (first, second))


@pytest.mark.parametrize(
    "joint", [", ", " ", " or ", " and ", "; ", " / ", " (or ", ", maybe ", ". Maybe ", " + ", ". ", "\n"]
)
@pytest.mark.parametrize(
    ("first", "second"), [("Paris", "London"), ("Tim Cook", "Mary Jones"), ("yen", "euro"), ("北京", "上海")]
)
def test_two_names_that_are_joined_earn_neither(joint: str, first: str, second: str) -> None:
    response = f"Therefore, the answer is {first}{joint}{second}."
    assert not any(earns("doc-qa", response, gold) for gold in (first, second))
