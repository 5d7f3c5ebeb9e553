"""Groups become rows: who is in, in which order, with what."""

import pytest

from hybridflow.errors import ProtocolError
from hybridflow.loop.batch import build_train_sequences
from hybridflow.types import (
    Completion,
    Group,
    Prompt,
    Scored,
    ScoredCompletion,
    TokenColumns,
    TrainSequence,
    Unknown,
    Verdict,
)

YES = Scored(value=1.0, rule="r", extracted="e", why="y")
LOST = Unknown(why="timeout")


def make_group(group_id: str, verdicts: list[Verdict]) -> Group:
    members = [
        ScoredCompletion(
            completion=Completion(
                completion_id=f"{group_id}-c{index:02d}",
                group_id=group_id,
                prompt_id="p",
                index=index,
                tokens=TokenColumns(ids=[10 + index] * (index + 1), rollout_logprobs=[-0.5] * (index + 1)),
                text="t",
                finish_reason="stop",
                policy_version=0,
                prompt_tokens=2,
                cached_tokens=0,
            ),
            verdict=verdict,
            scored_by="w",
        )
        for index, verdict in enumerate(verdicts)
    ]
    prompt = Prompt(prompt_id="p", token_ids=[1, 2], data_source="s", ability="doc-qa", ground_truth="g")
    return Group(group_id=group_id, prompt=prompt, members=members)


def test_members_become_rows_in_order_and_the_unknown_one_is_left_out() -> None:
    groups = [make_group("b", [YES, LOST, YES]), make_group("a", [YES])]
    rows = build_train_sequences(groups, {"a": [0.0], "b": [0.5, None, -0.5], "dropped": [1.0]})
    assert [(row.sequence_id, row.advantage) for row in rows] == [("b-c00", 0.5), ("b-c02", -0.5), ("a-c00", 0.0)]
    assert rows[1] == TrainSequence(
        sequence_id="b-c02",
        group_id="b",
        prompt_token_ids=[1, 2],
        response=TokenColumns(ids=[12, 12, 12], rollout_logprobs=[-0.5, -0.5, -0.5]),
        loss_mask=[1, 1, 1],
        advantage=-0.5,
    )
    assert rows[1].num_tokens == 5


@pytest.mark.parametrize(
    ("advantages", "message"),
    [
        ({}, "group g has 2 members but no advantages"),
        ({"g": [1.0]}, "group g has 2 members but 1 advantages"),
        ({"g": [0.5, -0.5]}, "g-c01 has an advantage but no verdict: timeout"),
    ],
)
def test_advantages_that_do_not_fit_their_group_are_refused(
    advantages: dict[str, list[float | None]], message: str
) -> None:
    with pytest.raises(ProtocolError, match=message):
        build_train_sequences([make_group("g", [YES, LOST])], advantages)
