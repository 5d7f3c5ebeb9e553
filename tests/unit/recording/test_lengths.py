"""Lengths of what is trained on against what is begun, by hand."""

from __future__ import annotations

import math

from hybridflow.config.sections import TrainSection
from hybridflow.loop.batch import plan_batch
from hybridflow.recording.lengths import LengthTotals
from hybridflow.types import (
    Collected,
    FilteredBatch,
    Group,
    Partial,
    PartialGroup,
    RolloutReport,
    ScoredCompletion,
    StepCounts,
    TokenColumns,
    TrainSequence,
    VersionRun,
)
from tests.builders import build_completion, build_request, build_scored

REPORT = RolloutReport(num_completions=0, prompt_tokens=0, cached_tokens=0, response_tokens=0)


def columns(length: int) -> TokenColumns:
    return TokenColumns(ids=[7] * length, rollout_logprobs=[-1.0] * length)


def member(length: int) -> ScoredCompletion:
    return build_scored(build_completion(tokens=columns(length)))


def group_of(*lengths: int) -> Group:
    return Group(group_id="g", prompt=build_request().prompt, members=[member(length) for length in lengths])


def row(length: int) -> TrainSequence:
    return TrainSequence(
        sequence_id="s", prompt_token_ids=[1], response=columns(length), loss_mask=[1] * length, advantage=1.0
    )


def filtered(*lengths: int) -> FilteredBatch:
    rows = [row(length) for length in lengths]
    return FilteredBatch(plan_batch(rows, [len(rows)], TrainSection(), temperature=1.0) if rows else None, 1, {})


def test_trained_and_begun_lengths_are_means_over_the_run() -> None:
    """Trained 2, 4; filtered 3, 3; carried 10 and a beginning of 6: 3 of 28 / 6. Then 14 and 10 are trained on."""
    totals = LengthTotals()
    partial = Partial(index=1, tokens=columns(6), versions=[VersionRun(0, 6)])
    carried = PartialGroup(
        group_id="c", prompt=build_request().prompt, num_completions=3, members=[member(10)], partials=[partial]
    )
    first = Collected([group_of(2, 4), group_of(3, 3)], REPORT, StepCounts(3), [carried])
    assert totals.add(first, filtered(2, 4)) == {
        "rollout/trained_length_mean": 3.0,
        "rollout/begun_length_mean": 28 / 6,
        "rollout/length_ratio": 3 / (28 / 6),
    }
    counts = StepCounts(0, num_discarded=1, discarded_tokens=8, num_discarded_completions=2)
    metrics = totals.add(Collected([group_of(10, 14)], REPORT, counts), filtered(10, 14))
    assert metrics["rollout/trained_length_mean"] == 30 / 4
    assert metrics["rollout/begun_length_mean"] == (2 + 4 + 3 + 3 + 10 + 14 + 8) / 8


def test_what_a_phase_gives_up_was_begun() -> None:
    totals = LengthTotals()
    group = PartialGroup(
        group_id="c", prompt=build_request().prompt, num_completions=2, members=[member(10)], partials=[]
    )
    totals.give_up([group])
    metrics = totals.add(Collected([group_of(4)], REPORT, StepCounts(0)), filtered(4))
    assert metrics["rollout/begun_length_mean"] == (10 + 4) / 2


def test_a_run_that_has_trained_on_nothing_has_no_ratio() -> None:
    metrics = LengthTotals().add(Collected([], REPORT, StepCounts(0)), filtered())
    assert all(math.isnan(value) for value in metrics.values())
