"""Rows find the experts of their prompt with the completion that tells them, and a batch without some is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from hybridflow.errors import ProtocolError
from hybridflow.loop.batch import build_train_sequences, check_experts, find_prompt_experts
from hybridflow.loop.evaluation import greedy
from hybridflow.loop.train_groups import train_sampling
from hybridflow.types import Completion, Group, Packed, TokenColumns, TrainSequence
from tests.builders import build_completion, build_prompt, build_request, build_scored
from tests.unit.loop.fakes import build_config

PROMPT = Packed((1, 2), 1, b"abcd")
REQUEST = build_request(build_prompt(token_ids=[1, 2, 3]), 3)
TOKENS = TokenColumns(ids=[5, 6], rollout_logprobs=[-0.5, -0.25], experts=Packed((1, 2), 1, b"efgh"))


def told(index: int, by: int | None = None) -> Completion:
    """A completion that tells the experts of the prompt, or says which one does."""
    if by is None:
        return build_completion(REQUEST, index, tokens=TOKENS, prompt_experts=PROMPT)
    return build_completion(REQUEST, index, tokens=TOKENS, prompt_experts_of=f"g-c{by:02d}")


def group_of(*completions: Completion) -> Group:
    return Group(group_id="g", prompt=REQUEST.prompt, members=[build_scored(one) for one in completions])


def rows_of(group: Group) -> list[TrainSequence]:
    return build_train_sequences([group], {"g": [1.0] * len(group.members)})


def test_rows_of_a_group_share_the_experts_of_their_prompt() -> None:
    rows = rows_of(group_of(told(0, by=1), told(1), told(2, by=1)))
    assert [row.prompt_experts for row in rows] == [PROMPT] * 3
    assert rows[0].prompt_experts is rows[1].prompt_experts is rows[2].prompt_experts
    check_experts(rows)


def test_a_teller_that_was_decoded_again_may_refer_on() -> None:
    """Its engine died; the completions of its second lease were told of by another one."""
    group = group_of(told(0, by=1), told(1, by=2), told(2))
    assert find_prompt_experts(group, group.members[0].completion) == PROMPT


@pytest.mark.parametrize("others", [(), (told(1, by=0),)])
def test_a_teller_that_is_not_there_is_named(others: tuple[Completion, ...]) -> None:
    with pytest.raises(ProtocolError, match="group g are said to be with g-c00 -> g-c01"):
        rows_of(group_of(told(0, by=1), *others))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"prompt_experts": Packed()}, r"0 \+ 2 tokens"),
        ({"response": msgspec.structs.replace(TOKENS, experts=Packed())}, r"2 \+ 0 tokens"),
    ],
)
def test_a_row_without_experts_is_refused(changes: dict[str, object], found: str) -> None:
    (row,) = rows_of(group_of(told(0)))
    with pytest.raises(ProtocolError, match=f"g-c00 says of {found}.*needs 2 \\+ 2. Remedy: run the same"):
        check_experts([msgspec.structs.replace(row, **changes)])


@pytest.mark.parametrize(("replay", "is_asked"), [("off", False), ("engine", True)])
def test_engines_are_asked_for_experts_where_they_are_replayed(tmp_path: Path, replay: str, is_asked: bool) -> None:
    """And never for those of an evaluation, which nothing is trained on."""
    sampling = train_sampling(build_config(tmp_path, algorithm__routing_replay=replay))
    assert (sampling.returns_experts, greedy(sampling).returns_experts) == (is_asked, False)
