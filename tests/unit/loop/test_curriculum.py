"""The loop with sources and step rules of other kinds: state over a resume, dynamic sampling, older checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hybridflow.algorithms.filters import SameReward
from hybridflow.config.sections import Config
from hybridflow.curriculum.build import Curriculum
from hybridflow.curriculum.source import ShuffledEpochs
from hybridflow.curriculum.step_rule import EveryCompleteGroup, Progress
from hybridflow.data.dataset import PromptDataset
from hybridflow.errors import CheckpointError, TrainerError
from hybridflow.loop.collect import Refill, collect_step
from hybridflow.loop.step import build_requests, plan_all
from hybridflow.loop.train_loop import train
from hybridflow.recording.records import CompletionRecord
from hybridflow.recording.run_folder.train_folder import TrainFolder
from hybridflow.types import Completion, Group, GroupRequest, Prompt, RolloutReport, SamplingParams, Scored, Verdict
from tests.builders import build_prompt, build_verdict
from tests.unit.loop.fakes import FakeRollout, FakeStream, FakeSystem, build_config, half_right
from tests.unit.loop.test_over_sampling import SlowRollout
from tests.unit.loop.test_train_loop import fail_at

STEPS = {"train__num_steps": 6, "eval__num_prompts": 0, "checkpoint__every_steps": 3}


class HardFirst:
    """Toy source: the prompt with the lowest mean reward so far; among equals the one that was taken least."""

    name = "hard_first"

    def __init__(self, dataset: PromptDataset) -> None:
        self._prompts = dataset.prompts
        self._means: dict[str, float] = {}
        self._taken: dict[str, int] = {}

    def next(self, num_prompts: int) -> list[Prompt]:
        chosen = sorted(self._prompts, key=self._place)[:num_prompts]
        for prompt in chosen:
            self._taken[prompt.prompt_id] = self._taken.get(prompt.prompt_id, 0) + 1
        return chosen

    def replace(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        return self.next(len(prompts))

    def _place(self, prompt: Prompt) -> tuple[float, int, str]:
        return self._means.get(prompt.prompt_id, 0.0), self._taken.get(prompt.prompt_id, 0), prompt.prompt_id

    def observe(self, groups: Sequence[Group]) -> None:
        for group in groups:
            rewards = [m.verdict.value for m in group.members if isinstance(m.verdict, Scored)]
            self._means[group.prompt.prompt_id] = sum(rewards) / len(rewards)

    def state_dict(self) -> dict[str, Any]:
        return {"means": self._means, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.keys() != {"means", "taken"}:
            raise ValueError(f"expected means and taken, got {sorted(state)}")
        self._means, self._taken = dict(state["means"]), dict(state["taken"])


def hard_first(dataset: PromptDataset) -> Curriculum:
    return Curriculum(HardFirst(dataset), EveryCompleteGroup())


def by_prompt(completion: Completion) -> Verdict:
    """Each prompt has a difficulty of its own, which changes with the policy."""
    return build_verdict(
        float((int(completion.prompt_id[-2:]) + completion.policy_version + completion.index) % 4 == 0)
    )


def resumed_after(step: int, config: Config, **parts: Any) -> FakeSystem:
    """The same run in a new process, its records cut as `--resume` cuts them."""
    CompletionRecord(TrainFolder(config).completions).truncate_after(step)
    return FakeSystem(config, is_resumed=True, **parts)


def prompts_by_step(system: FakeSystem) -> list[tuple[int, str]]:
    return [(line["step"], line["prompt_id"]) for line in system.completions()]


@pytest.mark.parametrize("changes", [{}, {"rollout__over_sampling": 1.5}])
def test_a_source_with_a_state_goes_on_after_a_resume_as_if_nothing_had_happened(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Killed in step 5; the checkpoint is of step 3. Without the state step 4 would take the prompts of step 1."""
    parts: dict[str, Any] = {"judge": by_prompt, "curriculum": hard_first}
    if changes:
        parts["engines"] = InOrder
    straight = FakeSystem(build_config(tmp_path / "a", **STEPS, **changes), **parts)
    train(straight.run)

    config = build_config(tmp_path / "b", **STEPS, **changes)
    stopped = FakeSystem(config, **parts)
    stopped.run.groups.collect = fail_at(stopped.run.groups.collect, 5)
    with pytest.raises(TrainerError):
        train(stopped.run)
    again = resumed_after(3, config, **parts)
    train(again.run)
    assert prompts_by_step(again) == prompts_by_step(straight)
    assert len({prompt_id for _, prompt_id in prompts_by_step(again)}) > 4, "the source handed out the same throughout"
    assert again.run.state.source == straight.run.state.source
    assert again.run.state.groups == straight.run.state.groups


class InOrder(SlowRollout):
    """Delivers in the order of requests, so that two runs may be compared."""

    def start(self, requests: list[Any], sampling: SamplingParams) -> None:
        self._left = [(request, index) for request in reversed(requests) for index in reversed(request.indices)]
        self._dropped = []

    def stop(self) -> None:
        for request, index in reversed(self._left):
            self._deliver(request, index, "abort")
        self._left = []


class DynamicSampling:
    """Toy rule: groups that teach count, and each of the others is replaced; at most so many a step."""

    def __init__(self, max_replaced: int = 100) -> None:
        self._max_replaced = max_replaced

    def counts(self, group: Group) -> bool:
        return SameReward()(group) is None

    def num_more(self, progress: Progress) -> int:
        return progress.num_short if progress.num_rejected <= self._max_replaced else 0


def dynamic(dataset: PromptDataset, rule: DynamicSampling | None = None) -> Curriculum:
    return Curriculum(ShuffledEpochs(dataset.prompts, ("order",)), rule or DynamicSampling())


def one_prompt_in_three(completion: Completion) -> Verdict:
    return half_right(completion) if int(completion.prompt_id[-2:]) % 3 == 0 else build_verdict(1.0)


def test_dynamic_sampling_trains_on_a_full_batch_in_every_step(tmp_path: Path) -> None:
    """Six of 16 prompts teach. Other groups are replaced until 4 that do are there; records and counts have all."""
    system = FakeSystem(build_config(tmp_path, **STEPS), judge=one_prompt_in_three, curriculum=dynamic)
    train(system.run)
    steps = [line for line in system.metrics() if "groups/started" in line]
    assert [line["groups/trained"] for line in steps] == [4.0] * 6
    groups = system.run.state.groups
    assert groups.trained == 24 and groups.started == 24 + groups.filtered["zero_variance_all_right"]
    order = ShuffledEpochs(system.inputs.train.prompts, ("order",)).next(groups.started)
    taken = [line["prompt_id"] for line in system.completions()][::2]
    assert taken == [prompt.prompt_id for prompt in order], "replacements are not the source's next prompts"
    ids = [line["completion_id"] for line in system.completions() if line["step"] == 1]
    assert ids == [f"t00001-g{slot:04d}-c{index:02d}" for slot in range(len(ids) // 2) for index in range(2)]
    num_rounds = sum(event.startswith("decode t") for event in system.events)
    assert num_rounds > 6 and system.run.state.prompt_tokens == 100 * num_rounds  # a fake round reports 100 each


def test_a_rule_that_gives_up_trains_on_what_there_is(tmp_path: Path) -> None:
    system = FakeSystem(
        build_config(tmp_path, **STEPS),
        judge=one_prompt_in_three,
        curriculum=lambda dataset: dynamic(dataset, DynamicSampling(max_replaced=1)),
    )
    train(system.run)
    trained = [line["groups/trained"] for line in system.metrics() if "groups/started" in line]
    assert len(trained) == 6 and min(trained) < 4 and not system.run.groups.kept.groups


def test_reports_of_the_rounds_of_a_step_are_summed() -> None:
    """Two rounds of 100 prompt tokens; an event of each."""
    stream = FakeStream(half_right)
    rollout = CountedRollout([], stream)
    rollout.version = 0
    prompts = [build_prompt()] * 2
    first, second = build_requests("t00001", prompts, 2)
    rule = OneMore([second])
    collected = collect_step(
        plan_all([first]),
        SamplingParams(temperature=1.0, max_new_tokens=2),
        rollout=rollout,
        stream=stream,
        verdict_timeout_s=1.0,
        refill=Refill(rule, rule.begin),
    )
    assert [group.group_id for group in collected.groups] == ["t00001-g0000", "t00001-g0001"]
    assert (collected.report.prompt_tokens, collected.report.events) == (200, {"lost_lease": 2})
    assert collected.counts.num_started == 2


def test_a_checkpoint_without_a_source_goes_on_with_the_default_and_is_refused_by_others(tmp_path: Path) -> None:
    config = build_config(tmp_path / "a", **STEPS)
    straight = FakeSystem(config)
    train(straight.run)
    config = build_config(tmp_path / "b", **STEPS)
    stopped = FakeSystem(config)
    stopped.run.groups.save_source = lambda: None
    stopped.trainer.update = fail_at(stopped.trainer.update, 5)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TrainerError):
        train(stopped.run)
    with pytest.raises(CheckpointError, match=r"source.name is 'shuffled_epochs', .* from 'hard_first'.*Remedy: "):
        FakeSystem(config, is_resumed=True, curriculum=hard_first)
    again = resumed_after(3, config)
    train(again.run)
    assert prompts_by_step(again) == prompts_by_step(straight)


class CountedRollout(FakeRollout):
    def poll(self) -> RolloutReport | None:
        report = super().poll()
        return None if report is None else msgspec.structs.replace(report, events={"lost_lease": 1})


class OneMore:
    """Counts no group before the second."""

    def __init__(self, requests: list[GroupRequest]) -> None:
        self.requests = requests

    def counts(self, group: Group) -> bool:
        return group.group_id.endswith("g0001")

    def num_more(self, progress: Progress) -> int:
        return progress.num_short

    def begin(self, num_groups: int, rejected: Sequence[GroupRequest]) -> list[GroupRequest]:
        assert num_groups == len(self.requests) and [group.group_id for group in rejected] == ["t00001-g0000"]
        return self.requests
