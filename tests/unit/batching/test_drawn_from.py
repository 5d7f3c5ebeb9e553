"""A batch has one temperature, and it comes from its completions."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from hybridflow.batching.drawn_from import check_sampling_masks, shared_distribution
from hybridflow.errors import ProtocolError
from hybridflow.loop.batch import build_batch
from hybridflow.rollout.engine.sglang_messages import with_distribution
from hybridflow.types import (
    Group,
    Partial,
    SamplingParams,
    TokenColumns,
    VersionRun,
)
from tests.builders import build_completion, build_group, build_prompt, build_request, with_completion
from tests.unit.loop.fakes import build_config

REQUEST = build_request(build_prompt(token_ids=[1, 2]), 2)


def group_at(*drawn_from: tuple[float | None, float]) -> Group:
    """A completion per (temperature, top_p), with rewards 1, 0, 0, ..."""
    group = build_group(REQUEST, [float(index == 0) for index in range(len(drawn_from))])
    members = [
        with_completion(member, temperature=temperature, top_p=top_p)
        for member, (temperature, top_p) in zip(group.members, drawn_from, strict=True)
    ]
    return msgspec.structs.replace(group, members=members)


def test_the_batch_has_that_of_its_completions(tmp_path: Path) -> None:
    config = build_config(tmp_path, rollout__temperature=0.9)
    batch = build_batch([group_at((0.7, 1.0), (0.7, 1.0))], config).batch
    assert batch is not None and (batch.temperature, batch.top_p) == (0.7, 1.0)


@pytest.mark.parametrize(
    ("drawn_from", "message"),
    [
        (((0.7, 1.0), (0.8, 1.0)), r"g-c00 at temperature 0\.7 and top_p 1, g-c01 at 0\.8 and 1\. Remedy"),
        (((0.7, 0.9), (0.7, 1.0)), r"g-c00 at temperature 0\.7 and top_p 0\.9, g-c01 at 0\.7 and 1"),
        (((0.7, 1.0), (None, 1.0)), r"g-c01 was drawn at temperature None"),
        (((0.0, 1.0), (0.0, 1.0)), r"g-c00 was drawn at temperature 0\.0"),
    ],
)
def test_others_are_refused(drawn_from: tuple[tuple[float | None, float], ...], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        shared_distribution([group_at(*drawn_from)])


def test_what_top_p_left_in_must_be_known(tmp_path: Path) -> None:
    batch = build_batch([group_at((0.7, 1.0), (0.7, 1.0))], build_config(tmp_path)).batch
    assert batch is not None
    with pytest.raises(ProtocolError, match=r"g-c00 was drawn with top_p = 0\.9 and does not say"):
        check_sampling_masks(batch.sequences, 0.9)


def test_a_completion_is_not_resumed_at_another_temperature() -> None:
    sampling = SamplingParams(temperature=0.7, max_new_tokens=4)
    tokens = TokenColumns(ids=[7], rollout_logprobs=[-1.0])
    begun = Partial(index=1, tokens=tokens, versions=[VersionRun(0, 1)], temperature=0.7)
    request = msgspec.structs.replace(REQUEST, partials=[begun])
    completion = build_completion(request, 1, 0)
    assert with_distribution(completion, request, sampling).temperature == 0.7
    with pytest.raises(ProtocolError, match=r"begun at temperature 0\.7 and top_p 1\.0 and resumed at 1\.0"):
        with_distribution(completion, request, msgspec.structs.replace(sampling, temperature=1.0))
