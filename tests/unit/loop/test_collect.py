"""Groups from completions that arrive in any order, or not at all."""

from __future__ import annotations

import pytest

from hybridflow.errors import RewardError, RolloutError
from hybridflow.loop.collect import collect_step
from hybridflow.loop.step import build_requests, plan_all
from hybridflow.types import Collected, Completion, SamplingParams, Verdict
from tests.builders import build_prompt
from tests.unit.loop.fakes import FakeRollout, FakeStream, Judge, half_right

PROMPTS = [build_prompt(f"p{n}", token_ids=[1, 2]) for n in range(3)]


def collect(judge: Judge = half_right, *, shuffle_seed: int = 0, error: Exception | None = None) -> Collected:
    stream = FakeStream(judge, shuffle_seed)
    rollout = FakeRollout([], stream)
    rollout.version, rollout.error = 7, error
    return collect_step(
        plan_all(build_requests("t00001", PROMPTS, 4)),
        SamplingParams(temperature=1.0, max_new_tokens=2),
        rollout=rollout,
        stream=stream,
        verdict_timeout_s=0.05,
    )


@pytest.mark.parametrize("shuffle_seed", range(5))
def test_any_order_of_arrival_gives_request_and_index_order(shuffle_seed: int) -> None:
    collected = collect(shuffle_seed=shuffle_seed)
    assert [group.group_id for group in collected.groups] == ["t00001-g0000", "t00001-g0001", "t00001-g0002"]
    assert [group.prompt.prompt_id for group in collected.groups] == ["p0", "p1", "p2"]
    assert [[m.completion.index for m in group.members] for group in collected.groups] == [[0, 1, 2, 3]] * 3
    assert collected.report.num_completions == 12


def test_a_verdict_that_never_comes_is_named() -> None:
    def forget_one(completion: Completion) -> Verdict | None:
        return None if completion.completion_id == "t00001-g0001-c02" else half_right(completion)

    with pytest.raises(RewardError, match=r"1 of 12 completions within reward.timeout_s = 0.05 s.*t00001-g0001-c02"):
        collect(forget_one)


def test_an_engine_error_comes_through() -> None:
    with pytest.raises(RolloutError, match="engine-0 died"):
        collect(error=RolloutError("engine-0 died"))


def test_a_dead_reward_worker_ends_the_wait_before_the_timeout() -> None:
    def raise_dead() -> None:
        raise RewardError("reward worker 1 ended")

    stream = FakeStream(lambda _: None)
    rollout = FakeRollout([], stream)
    rollout.version = 0
    with pytest.raises(RewardError, match="reward worker 1 ended"):
        collect_step(
            plan_all(build_requests("t00001", PROMPTS, 4)),
            SamplingParams(temperature=1.0, max_new_tokens=2),
            rollout=rollout,
            stream=stream,
            verdict_timeout_s=3600.0,
            check_workers=raise_dead,
        )
