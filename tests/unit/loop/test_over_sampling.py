"""The loop with over-sampling: a step ends early, and what it had begun is continued, also after a resume."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hybridflow.config.rollout_section import RolloutSection
from hybridflow.curriculum.build import build_curriculum
from hybridflow.loop.train_loop import train
from hybridflow.preflight.inputs import load_inputs
from hybridflow.recording.summary import sampling_guarantee
from hybridflow.rollout.engine.sglang_messages import join_runs
from hybridflow.types import GroupRequest, RolloutReport, SamplingParams, VersionRun
from hybridflow.types.tokens import concatenate
from hybridflow.wire.messages import build_completion_id
from tests.builders import build_completion
from tests.unit.loop.fakes import FakeRollout, FakeSystem, build_config

OVER = {"train__num_steps": 6, "rollout__over_sampling": 1.5, "eval__num_prompts": 0, "checkpoint__every_steps": 3}


class SlowRollout(FakeRollout):
    """Delivers one completion at each poll, in a random order; when stopped it aborts some and drops others."""

    chance = random.Random(3)

    def start(self, requests: list[GroupRequest], sampling: SamplingParams) -> None:
        self._left = [(request, index) for request in requests for index in request.indices]
        self.chance.shuffle(self._left)
        self._dropped: list[str] = []

    def extend(self, requests: list[GroupRequest]) -> None:
        self._left += [(request, index) for request in requests for index in request.indices]
        self.chance.shuffle(self._left)

    def poll(self) -> RolloutReport | None:
        if self._left:
            self._deliver(*self._left.pop(), "stop")
            return None
        return RolloutReport(num_completions=1, prompt_tokens=1, cached_tokens=0, response_tokens=1)

    def stop(self) -> None:
        for request, index in self._left:
            if self.chance.random() < 0.3:
                self._dropped.append(build_completion_id(request.group_id, index))
            else:
                self._deliver(request, index, "abort")
        self._left = []

    def take_dropped(self) -> list[str]:
        dropped, self._dropped = self._dropped, []
        return dropped

    def _deliver(self, request: GroupRequest, index: int, reason: str) -> None:
        assert self.version is not None
        new = build_completion(request, index, self.version, finish_reason=reason)
        if partial := request.partial(index):
            new = msgspec.structs.replace(
                new,
                tokens=concatenate([partial.tokens, new.tokens]),
                versions=join_runs([*partial.versions, VersionRun(self.version, len(new.token_ids))]),
            )
        self._stream.deliver([new])


def over_sampled(config: Any, is_resumed: bool = False) -> FakeSystem:
    return FakeSystem(config, is_resumed=is_resumed, engines=SlowRollout)


def test_each_prompt_is_trained_on_once_also_over_a_resume(tmp_path: Path) -> None:
    config = build_config(tmp_path, **OVER)
    first = over_sampled(config)
    first.run.config = build_config(tmp_path, **OVER | {"train__num_steps": 3})
    train(first.run)
    assert first.run.groups.kept.groups, "nothing was carried over: the test shows nothing"

    again = over_sampled(config, is_resumed=True)
    train(again.run)

    used = {line["group_id"]: line["prompt_id"] for line in again.completions()}
    assert len(used) == 6 * 4 and len(again.completions()) == 6 * 4 * 2
    carried = again.run.groups.kept.groups
    source = build_curriculum(config, load_inputs(config, None).trains).source
    walk = [prompt.prompt_id for prompt in source.next(6 * 4 + len(carried))]
    assert sorted([*used.values(), *(group.prompt.prompt_id for group in carried)]) == sorted(walk)
    groups = again.run.state.groups
    assert groups.started == groups.trained + sum(groups.filtered.values()) + groups.discarded + len(carried)
    assert any("versions" in line for line in again.completions()), "no completion was resumed"


def test_a_step_says_how_old_its_tokens_are(tmp_path: Path) -> None:
    system = over_sampled(build_config(tmp_path, **OVER))
    train(system.run)
    steps = [line for line in system.metrics() if "groups/started" in line]
    assert steps[0]["rollout/staleness_max"] == 0.0
    assert max(line["rollout/staleness_max"] for line in steps) in (1.0, 2.0)
    assert all(0 <= line["rollout/staleness_mean"] <= line["rollout/staleness_max"] for line in steps)
    assert all(line["groups/stopped"] + line["groups/surplus"] == 2.0 for line in steps)
    assert steps[1]["groups/resumed"] > 0 and steps[0]["rollout/kept_tokens"] > 0


def test_what_is_discarded_leaves_no_older_token(tmp_path: Path) -> None:
    system = over_sampled(build_config(tmp_path, **OVER, rollout__partial="discard"))
    train(system.run)
    assert all(line["policy_version"] == line["step"] - 1 and "versions" not in line for line in system.completions())
    assert system.run.state.groups.discarded > 0


def test_without_over_sampling_nothing_of_it_is_in_the_records(tmp_path: Path) -> None:
    system = FakeSystem(build_config(tmp_path))
    train(system.run)
    assert not any(
        name.startswith(("rollout/staleness", "groups/resumed")) for line in system.metrics() for name in line
    )
    assert not system.run.groups.kept.groups


def test_a_stop_text_is_refused_where_completions_are_resumed() -> None:
    with pytest.raises(ValueError, match=r"rollout.stop \(\['x'\]\) with rollout.over_sampling \(1.5\)"):
        RolloutSection(over_sampling=1.5, stop=["x"])
    RolloutSection(over_sampling=1.5, stop=["x"], partial="discard")


def test_the_summary_says_what_decides_the_completions() -> None:
    assert "same config and seed, same completions" in sampling_guarantee(RolloutSection(), has_cuda=False)
    assert "order of arrival decides" in sampling_guarantee(RolloutSection(over_sampling=1.5), has_cuda=False)
    assert sampling_guarantee(RolloutSection(), has_cuda=True).startswith("none")
    deterministic = RolloutSection(sglang={"enable_deterministic_inference": True})
    assert "SGLang honours them" in sampling_guarantee(deterministic, has_cuda=True)
