"""Dynamic sampling in the loop: full batches, a bank that outlives the process, tries that are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybridflow.config.rollout_section import RolloutSection
from hybridflow.curriculum.step_rule import Progress, TeachingGroups
from hybridflow.errors import ConfigError, TrainerError
from hybridflow.loop.kept_groups import KeptGroups
from hybridflow.loop.train_loop import train
from hybridflow.recording.summary import sampling_guarantee
from hybridflow.types import Completion, GroupRequest, SamplingParams, Verdict
from tests.builders import build_verdict
from tests.unit.loop.fakes import FakeSystem, build_config, half_right
from tests.unit.loop.test_curriculum import InOrder, one_prompt_in_three, resumed_after
from tests.unit.loop.test_over_sampling import SlowRollout
from tests.unit.loop.test_train_loop import fail_at

DYNAMIC: dict[str, Any] = {
    "train__num_steps": 6,
    "eval__num_prompts": 0,
    "checkpoint__every_steps": 3,
    "rollout__dynamic_sampling": True,
}


def steps_of(system: FakeSystem) -> list[dict[str, Any]]:
    return [line for line in system.metrics() if "groups/started" in line]


class Counting(SlowRollout):
    """Notes how much it had left to decode whenever it was given more."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.num_starts = 0
        self.left_when_extended: list[int] = []

    def start(self, requests: list[GroupRequest], sampling: SamplingParams) -> None:
        self.num_starts += 1
        super().start(requests, sampling)

    def extend(self, requests: list[GroupRequest]) -> None:
        self.left_when_extended.append(len(self._left))
        super().extend(requests)


@pytest.mark.parametrize("over_sampling", [1.0, 1.5])
def test_every_step_trains_on_a_full_batch_and_engines_are_given_more_while_they_decode(
    tmp_path: Path, over_sampling: float
) -> None:
    """Six of 16 prompts teach."""
    config = build_config(tmp_path, **DYNAMIC, rollout__over_sampling=over_sampling)
    system = FakeSystem(config, judge=one_prompt_in_three, engines=Counting)
    train(system.run)
    assert [line["groups/trained"] for line in steps_of(system)] == [4.0] * 6
    assert [line["groups/short"] for line in steps_of(system)] == [0.0] * 6
    groups, carried = system.run.state.groups, system.run.groups.kept.groups
    assert groups.trained == 24 and groups.discarded == 0
    assert groups.started == 24 + groups.filtered["zero_variance_all_right"] + len(carried)
    assert isinstance(system.rollout, Counting)
    assert max(system.rollout.left_when_extended) > 0, "further groups waited until all was decoded"
    trained = [line["group_id"] for line in system.completions()]
    assert len(set(trained)) * 2 == len(trained), "a group was recorded twice"


def test_a_resumed_run_with_a_bank_equals_one_that_was_not_stopped(tmp_path: Path) -> None:
    """Killed in step 5; the checkpoint of step 3 holds complete groups and partial ones."""
    settings = DYNAMIC | {"rollout__over_sampling": 2.0}
    parts: dict[str, Any] = {"judge": two_prompts_in_three, "engines": Surplus}
    straight = FakeSystem(build_config(tmp_path / "a", **settings), **parts)
    train(straight.run)

    config = build_config(tmp_path / "b", **settings)
    stopped = FakeSystem(config, **parts)
    stopped.run.groups.collect = fail_at(stopped.run.groups.collect, 5)
    with pytest.raises(TrainerError):
        train(stopped.run)
    kept = KeptGroups.load(stopped.folder.checkpoints / "rl-000003").groups
    assert {group.is_complete for group in kept} == {True, False}, "the test shows nothing"
    again = resumed_after(3, config, **parts)
    train(again.run)

    def without_time(system: FakeSystem) -> list[dict[str, Any]]:
        return [{name: value for name, value in line.items() if name != "time"} for line in system.completions()]

    assert without_time(again) == without_time(straight)
    assert again.run.state.groups == straight.run.state.groups
    assert again.run.state.lengths == straight.run.state.lengths
    assert again.run.groups.kept.groups == straight.run.groups.kept.groups
    assert {line["groups/trained"] for line in steps_of(again)} == {4.0}


def two_prompts_in_three(completion: Completion) -> Verdict:
    return half_right(completion) if int(completion.prompt_id[-2:]) % 3 else build_verdict(1.0)


def test_a_step_that_the_bank_fills_decodes_nothing(tmp_path: Path) -> None:
    """At its stop the first step ends all that is under way: twelve groups, three steps of four."""
    settings = {"rollout__over_sampling": 3.0, "train__num_steps": 4}
    system = FakeSystem(build_config(tmp_path, **DYNAMIC | settings), engines=EndsAll)
    train(system.run)
    assert isinstance(system.rollout, EndsAll)
    assert system.rollout.num_given[1:] == [24, 0, 0, 24], "after the one of the gate"
    assert [line["groups/trained"] for line in steps_of(system)] == [4.0] * 4
    assert [line["rollout/staleness_max"] for line in steps_of(system)] == [0.0, 1.0, 2.0, 0.0]


class EndsAll(InOrder):
    """When it is stopped it ends all completions that are under way."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.num_given: list[int] = []

    def start(self, requests: list[GroupRequest], sampling: SamplingParams) -> None:
        super().start(requests, sampling)
        self.num_given.append(len(self._left))

    def stop(self) -> None:
        for request, index in reversed(self._left):
            self._deliver(request, index, "stop")
        self._left = []


class Surplus(InOrder):
    """When it is stopped it ends every second completion that is under way: some groups are complete, others not."""

    def extend(self, requests: list[GroupRequest]) -> None:
        self._left = [(r, i) for r in reversed(requests) for i in reversed(r.indices)] + self._left

    def stop(self) -> None:
        for request, index in reversed(self._left):
            number = int(request.group_id[-4:])
            self._deliver(request, index, "stop" if number % 2 or index == 0 else "abort")
        self._left = []


@pytest.mark.parametrize(("when_too_few", "trained"), [("train", [2.0, 0.0, 1.0]), ("skip", [0.0, 0.0, 0.0])])
def test_too_many_tries_are_an_outcome_that_is_counted(tmp_path: Path, when_too_few: str, trained: list[float]) -> None:
    """Two of 16 prompts teach, and a step may begin 8: nobody finds 4. What a skipped step found is kept."""

    def two_teach(completion: Completion) -> Verdict:
        return half_right(completion) if int(completion.prompt_id[-2:]) < 2 else build_verdict(0.0)

    config = build_config(
        tmp_path,
        **DYNAMIC | {"train__num_steps": 3},
        rollout__max_generation_batches=2,
        rollout__when_too_few=when_too_few,
    )
    system = FakeSystem(config, judge=two_teach)
    train(system.run)
    steps = steps_of(system)
    assert [line["groups/trained"] for line in steps] == trained
    groups, kept = system.run.state.groups, system.run.groups.kept.groups
    assert groups.short_steps == 3 and groups.trained == sum(trained)
    assert groups.started == groups.trained + sum(groups.filtered.values()) + len(kept)
    if when_too_few == "train":
        assert [line["groups/short"] for line in steps] == [4 - number for number in trained]
        assert not kept
    else:
        assert system.run.state.policy_version == 0 and len(kept) in (2, 3)
        assert steps[-1]["groups/short"] == 4 - len(kept)


def test_each_group_that_does_not_teach_is_replaced_until_the_tries_are_used_up() -> None:
    rule = TeachingGroups(lambda group: None, lambda needed: 6, max_generation_batches=2)
    assert [
        rule.num_more(Progress(num_needed=4, num_counted=counted, num_rejected=rejected, num_open=num_open))
        for counted, rejected, num_open in [(0, 0, 6), (1, 1, 4), (3, 3, 3), (2, 5, 2), (2, 7, 3), (2, 10, 0)]
    ] == [0, 1, 0, 2, 0, 0]


def test_of_unknown_verdicts_one_batch_is_replaced() -> None:
    """Six groups under way: half unknown ones are replaced twelve times, wholly unknown ones six times."""
    rule = TeachingGroups(lambda group: None, lambda needed: 6, max_generation_batches=10)
    for share, num_replaced in ((0.1, 54), (0.5, 12), (1 / 3, 18), (1.0, 6)):
        num_rejected, num_begun = 0, 6
        while num_begun > num_rejected:
            num_rejected += 1
            num_open = num_begun - num_rejected
            num_begun += rule.num_more(
                Progress(
                    num_needed=4,
                    num_counted=0,
                    num_rejected=num_rejected,
                    num_open=num_open,
                    num_unknown=num_rejected * share,
                )
            )
        assert num_begun == 6 + num_replaced, share


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_generation_batches": 5}, r"max_generation_batches \(5\) .*dynamic_sampling is false. Remedy: "),
        ({"when_too_few": "skip"}, r"when_too_few \('skip'\) .*dynamic_sampling is false. Remedy: "),
        ({"dynamic_sampling": True, "max_generation_batches": 1}, r"none could be replaced. Remedy: raise"),
    ],
)
def test_keys_that_could_do_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutSection(**settings)


def test_a_bank_of_tokens_that_are_not_learnt_from_is_refused(tmp_path: Path) -> None:
    changes = {"rollout__dynamic_sampling": True, "algorithm__mask_stale_tokens": True}
    build_config(tmp_path, **changes)
    with pytest.raises(ConfigError, match=r"over_sampling \(1.5\) above 1 and algorithm.mask_stale_tokens = true"):
        build_config(tmp_path, **changes, rollout__over_sampling=1.5)


def test_the_summary_says_that_replacements_come_as_verdicts_do() -> None:
    section = RolloutSection(dynamic_sampling=True)
    assert "replaced as verdicts arrive" in sampling_guarantee(section, has_cuda=False)
    assert "two runs of one seed differ" in sampling_guarantee(section, has_cuda=False, balances_tasks=True)
