"""Over-sampling: no prompt is lost or doubled, no token is too old, and what was decoded is kept."""

from __future__ import annotations

import math
import random
from itertools import count
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridflow.config.rollout_section import RolloutSection
from hybridflow.errors import CheckpointError, ProtocolError
from hybridflow.loop.kept_groups import KEPT_GROUPS_FILE, KeptGroups
from hybridflow.loop.step import (
    GroupAssembly,
    PartialRollouts,
    build_requests,
    plan_all,
)
from hybridflow.rollout.engine.sglang_messages import join_runs
from hybridflow.types import (
    GroupRequest,
    Partial,
    PartialGroup,
    Prompt,
    ScoredCompletion,
    StepCounts,
    TokenColumns,
    VersionRun,
)
from hybridflow.wire.messages import build_completion_id
from tests.builders import build_completion, build_prompt, build_scored

NUM_COMPLETIONS = 3
LENGTH = 6
"""Tokens of a completion that ends."""


def prompt(number: int) -> Prompt:
    return build_prompt(f"p{number}")


def decode(request: GroupRequest, index: int, version: int, num_new: int | None) -> ScoredCompletion:
    """To its end, or aborted after `num_new` more tokens. Token i of a completion is i, its logprob -i."""
    partial = request.partial(index)
    before = partial.versions if partial else []
    have = sum(run.num_tokens for run in before)
    total = LENGTH if num_new is None else min(have + num_new, LENGTH - 1)
    runs = join_runs([*before, *([VersionRun(version, total - have)] if total > have else [])])
    completion = build_completion(
        request,
        index,
        version,
        tokens=TokenColumns(ids=list(range(total)), rollout_logprobs=[-float(i) for i in range(total)]),
        finish_reason="stop" if num_new is None else "abort",
        versions=runs,
        resumed_tokens=have,
    )
    return build_scored(completion)


def ended(index: int, version: int) -> ScoredCompletion:
    return decode(build_requests("t00001", [prompt(0)], NUM_COMPLETIONS)[0], index, version, None)


@pytest.mark.parametrize(("over_sampling", "num_begun"), [(1.0, 10), (1.1, 11), (1.15, 12), (1.5, 15)])
def test_number_of_groups_under_way(over_sampling: float, num_begun: int) -> None:
    rules = PartialRollouts.of(RolloutSection(over_sampling=over_sampling), prompts_per_step=10)
    assert (rules.num_needed, rules.num_begun) == (10, num_begun)


def test_without_over_sampling_a_step_begins_its_prompts_alone() -> None:
    rules = PartialRollouts.of(RolloutSection(), prompts_per_step=4)
    assert rules.num_fresh(0) == 4
    plan = rules.plan("t00002", [], [prompt(n) for n in range(4)], 1, NUM_COMPLETIONS)
    assert plan.requests == build_requests("t00002", [prompt(n) for n in range(4)], NUM_COMPLETIONS)
    assert plan.counts == StepCounts(num_started=4)


def test_a_carried_group_is_gone_on_with_under_its_id() -> None:
    partial = Partial(index=2, tokens=TokenColumns(ids=[8], rollout_logprobs=[-1.0]), versions=[VersionRun(0, 1)])
    group = PartialGroup(
        group_id="t00001-g0003", prompt=prompt(3), num_completions=3, members=[ended(0, 0)], partials=[partial]
    )
    plan = PartialRollouts(2, 3, max_staleness=1).plan("t00002", [group], [prompt(4), prompt(5)], 1, 3)
    assert [request.group_id for request in plan.requests] == ["t00001-g0003", "t00002-g0000", "t00002-g0001"]
    first = plan.requests[0]
    assert (first.indices, first.partial(1), first.partial(2)) == ([1, 2], None, partial)
    assert plan.kept["t00001-g0003"] == group.members
    assert plan.counts == StepCounts(num_started=2, num_resumed=1)


def test_a_group_with_a_token_that_is_too_old_begins_anew() -> None:
    old = Partial(index=1, tokens=TokenColumns(ids=[8], rollout_logprobs=[-1.0]), versions=[VersionRun(0, 1)])
    group = PartialGroup(
        group_id="t00001-g0003", prompt=prompt(3), num_completions=3, members=[ended(0, 1)], partials=[old]
    )
    plan = PartialRollouts(2, 3, max_staleness=1).plan("t00003", [group], [prompt(4)], 2, 3)
    assert [(r.group_id, r.prompt.prompt_id, r.indices) for r in plan.requests] == [
        ("t00003-g0000", "p3", [0, 1, 2]),
        ("t00003-g0001", "p4", [0, 1, 2]),
    ]
    assert plan.counts == StepCounts(
        num_started=2, num_discarded=1, discarded_tokens=LENGTH + 1, num_discarded_completions=2
    )
    assert [r.seed_id for r in plan.requests] == [group.group_id, ""]  # drawn again with the seeds of its first begin


def test_to_discard_is_to_allow_no_older_version() -> None:
    section = RolloutSection(over_sampling=1.5, partial="discard", max_staleness=7)
    assert PartialRollouts.of(section, 2).max_staleness == 0


def test_of_more_complete_groups_than_needed_the_oldest_are_taken() -> None:
    plan = PartialRollouts(1, 2, 1).plan("t00001", [], [prompt(0), prompt(1)], 0, 2)
    assembly = GroupAssembly(plan)
    for request in reversed(plan.requests):
        for index in (1, 0):
            assembly.add(decode(request, index, 0, None))
    groups, carried = assembly.result()
    assert [group.group_id for group in groups] == ["t00001-g0000"]
    assert [member.completion.index for member in groups[0].members] == [0, 1]
    assert [(group.group_id, group.is_complete) for group in carried] == [("t00001-g0001", True)]


def test_what_is_not_awaited_is_refused() -> None:
    assembly = GroupAssembly(plan_all(build_requests("t00001", [prompt(0)], 3)))
    assembly.add(ended(0, 0))
    with pytest.raises(ProtocolError, match="t00001-g0000-c00 is not awaited"):
        assembly.add(ended(0, 0))
    with pytest.raises(ProtocolError, match="t00009-g0000-c00 is not awaited"):
        assembly.drop(["t00009-g0000-c00"])


def test_carried_groups_survive_a_checkpoint(tmp_path: Path) -> None:
    partial = Partial(
        index=2, tokens=TokenColumns(ids=[8, 9], rollout_logprobs=[-1.0, -0.5]), versions=[VersionRun(0, 2)]
    )
    group = PartialGroup(
        group_id="t00001-g0003", prompt=prompt(3), num_completions=3, members=[ended(0, 0)], partials=[partial]
    )
    assert KeptGroups.load(tmp_path).groups == []
    KeptGroups([group]).save(tmp_path)
    assert KeptGroups.load(tmp_path).groups == [group]
    whole = (tmp_path / KEPT_GROUPS_FILE).read_bytes()
    for broken in (b"\x93", b"", whole.replace(b"t00001", b"t\xff0001"), b"\x91" * 5000):
        (tmp_path / KEPT_GROUPS_FILE).write_bytes(broken)
        with pytest.raises(CheckpointError, match="not readable as carried groups"):
            KeptGroups.load(tmp_path)
    for older in ([{"group_id": "t00001-g0003"}], {"format": 3, "groups": []}):
        (tmp_path / KEPT_GROUPS_FILE).write_bytes(msgspec.msgpack.encode(older))
        with pytest.raises(CheckpointError, match=r"has format [13], this version of .* reads format 2\. Resume"):
            KeptGroups.load(tmp_path)


@settings(max_examples=200, deadline=None)
@given(
    needed=st.integers(1, 4),
    factor=st.sampled_from([1.0, 1.25, 1.5, 2.0, 3.0]),
    max_staleness=st.integers(0, 3),
    seed=st.integers(0, 10_000),
)
def test_any_course_of_steps_trains_on_each_prompt_once(
    needed: int, factor: float, max_staleness: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Completions end, are aborted or dropped at random; a resume from the checkpoint happens at random, too."""
    chance = random.Random(seed)
    rules = PartialRollouts(needed, math.ceil(needed * factor), max_staleness)
    carried: list[PartialGroup] = []
    used_ids: list[str] = []
    trained: list[str] = []
    numbers = count()
    started = discarded = 0
    for step in range(1, 8):
        version = step - 1
        fresh = [prompt(next(numbers)) for _ in range(rules.num_fresh(len(carried)))]
        plan = rules.plan(f"t{step:05d}", carried, fresh, version, NUM_COMPLETIONS)
        assert len(plan.requests) == rules.num_begun
        started += plan.counts.num_started
        discarded += plan.counts.num_discarded
        assembly = GroupAssembly(plan)
        to_come = [(request, index) for request in assembly.requests for index in request.indices]
        chance.shuffle(to_come)
        while to_come and not assembly.is_enough:
            assembly.add(decode(*to_come.pop(), version, None))
        for request, index in to_come:
            fate = chance.choice(["end", "abort", "abort", "drop"])
            if fate == "drop":
                assembly.drop([build_completion_id(request.group_id, index)])
            else:
                assembly.add(decode(request, index, version, None if fate == "end" else chance.randint(0, 3)))
        assert assembly.is_settled
        groups, carried = assembly.result()
        assert len(groups) == needed
        for group in groups:
            assert [member.completion.index for member in group.members] == list(range(NUM_COMPLETIONS))
            for member in group.members:
                completion = member.completion
                assert completion.token_ids == list(range(LENGTH)), "a token was lost or came twice"
                assert completion.tokens.rollout_logprobs == [-float(i) for i in range(LENGTH)]
                assert sum(run.num_tokens for run in completion.version_runs) == LENGTH
                assert all(0 <= version - run.version <= max_staleness for run in completion.version_runs)
        used_ids += [group.group_id for group in groups]
        trained += [group.prompt.prompt_id for group in groups]
        if chance.random() < 0.3:
            folder = tmp_path_factory.mktemp("checkpoint")
            KeptGroups(carried).save(folder)
            carried = KeptGroups.load(folder).groups
    assert len(set(used_ids)) == len(used_ids)
    everything = sorted([*trained, *(group.prompt.prompt_id for group in carried)])
    assert everything == sorted(f"p{n}" for n in range(len(everything))), "a prompt was lost or came twice"
    assert started == len(trained) + discarded + len(carried)
