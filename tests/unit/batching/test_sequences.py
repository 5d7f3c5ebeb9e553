"""Groups become rows: who is in, in which order, with what."""

import msgspec
import pytest

from hybridflow.batching.sequences import build_train_sequences
from hybridflow.errors import ProtocolError
from hybridflow.types import (
    Group,
    Scored,
    TokenColumns,
    TrainSequence,
    Unknown,
    Verdict,
)
from tests.builders import build_group, build_prompt, build_request, with_completion

YES = Scored(value=1.0, rule="r", extracted="e", why="y")
LOST = Unknown(why="timeout")


def make_group(group_id: str, verdicts: list[Verdict]) -> Group:
    request = build_request(build_prompt(token_ids=[1, 2]), len(verdicts), group_id=group_id)
    group = build_group(request, verdicts)
    lengths = range(1, len(verdicts) + 1)
    members = [
        with_completion(member, tokens=TokenColumns(ids=[9 + length] * length, rollout_logprobs=[-0.5] * length))
        for member, length in zip(group.members, lengths, strict=True)
    ]
    return msgspec.structs.replace(group, members=members)


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
