"""Groups in place of those that do not count: of the same task, and none without end while verdicts are unknown."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hybridflow.curriculum.build import Curriculum, build_step_rule
from hybridflow.curriculum.source import ShuffledEpochs
from hybridflow.curriculum.task_balance import TaskBalance
from hybridflow.data.dataset import PromptDataset
from hybridflow.errors import RewardError, TrainerError
from hybridflow.loop.step import build_requests
from hybridflow.loop.train_groups import Replacements
from hybridflow.loop.train_loop import train
from hybridflow.types import Completion, GroupRequest, Prompt, Verdict
from tests.builders import build_prompt, build_verdict
from tests.unit.loop.fakes import FakeSystem, build_config, half_right
from tests.unit.loop.test_curriculum import resumed_after
from tests.unit.loop.test_dynamic_sampling import Surplus
from tests.unit.loop.test_train_loop import fail_at

BALANCED: dict[str, Any] = {
    "train__num_steps": 6,
    "train__prompts_per_step": 10,
    "eval__num_prompts": 0,
    "checkpoint__every_steps": 3,
    "rollout__dynamic_sampling": True,
}
SHARES = {"big": 8.0, "middle": 1.0, "small": 1.0}


def task_of(prompt_id: str) -> str:
    """The last two of 16 rows are small, the two before them middle."""
    return ("big", "middle", "small")[max(0, (int(prompt_id[-2:]) - 10) // 2)]


def balanced(config: Any) -> Any:
    def build(dataset: PromptDataset) -> Curriculum:
        rows = [msgspec.structs.replace(one, data_source=task_of(one.prompt_id)) for one in dataset.prompts]
        return Curriculum(TaskBalance(rows, ("order",), SHARES), build_step_rule(config))

    return build


def hard_tasks_teach_seldom(completion: Completion) -> Verdict:
    """Nine of ten groups of big teach, two of ten of middle, three of ten of small: decided by the group's id."""
    chance = {"big": 0.9, "middle": 0.2, "small": 0.3}[task_of(completion.prompt_id)]
    teaches = random.Random(completion.group_id).random() < chance
    return half_right(completion) if teaches else build_verdict(0.0)


def tasks_trained(system: FakeSystem) -> list[Counter[str]]:
    """By update, the tasks of the groups that the trainer got."""
    prompts = {line["group_id"]: line["prompt_id"] for line in system.completions()}
    return [
        Counter(task_of(prompts[group_id]) for group_id in {row.group_id for row in batch.sequences})
        for batch in system.trainer.batches
    ]


def test_trained_batches_keep_the_shares_of_tasks_though_some_teach_seldom(tmp_path: Path) -> None:
    """Shares of 8:1:1, batches of 10; replacements of any task would give hard tasks less than their places."""
    config = build_config(tmp_path, **BALANCED, rollout__max_generation_batches=30)
    system = FakeSystem(config, judge=hard_tasks_teach_seldom, curriculum=balanced(config))
    train(system.run)
    assert tasks_trained(system) == [{"big": 8, "middle": 1, "small": 1}] * 6
    assert sum(system.run.state.groups.filtered.values()) > 20, "nothing was replaced: the test shows nothing"


def test_a_resumed_run_takes_the_same_prompts_as_one_that_was_not_stopped(tmp_path: Path) -> None:
    def build(name: str, **parts: Any) -> FakeSystem:
        config = build_config(tmp_path / name, **BALANCED, rollout__over_sampling=1.5)
        given = {"judge": hard_tasks_teach_seldom, "curriculum": balanced(config), "engines": Surplus}
        return resumed_after(3, config, **given) if parts else FakeSystem(config, **given)

    straight, stopped = build("a"), build("b")
    train(straight.run)
    stopped.run.groups.collect = fail_at(stopped.run.groups.collect, 5)
    with pytest.raises(TrainerError):
        train(stopped.run)
    again = build("b", is_resumed=True)
    train(again.run)
    taken = [[(line["step"], line["completion_id"], line["prompt_id"]) for line in one.completions()]
             for one in (again, straight)]  # fmt: skip
    assert taken[0] == taken[1]
    assert again.run.state.source == straight.run.state.source


def test_a_task_that_never_teaches_uses_up_its_own_tries_and_leaves_its_places_to_others(tmp_path: Path) -> None:
    """Each place of middle has three tries, then what is next; so a step is full, and ends."""

    def middle_is_too_hard(completion: Completion) -> Verdict:
        return build_verdict(0.0) if task_of(completion.prompt_id) == "middle" else half_right(completion)

    config = build_config(tmp_path, **BALANCED, rollout__max_generation_batches=3)
    system = FakeSystem(config, judge=middle_is_too_hard, curriculum=balanced(config))
    train(system.run)
    for trained in tasks_trained(system):
        assert sum(trained.values()) == 10 and trained["middle"] == 0 and trained["small"] >= 1
    steps = [line for line in system.metrics() if "groups/started" in line]
    assert {line["groups/short"] for line in steps} == {0.0}
    assert all(3 <= line["groups/started"] - 10 <= 6 for line in steps)  # two more of middle, and what is next


class Noting(ShuffledEpochs):
    """Notes what is asked of it."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        super().__init__(prompts, ("s",))
        self.asked: list[list[str] | int] = []

    def next(self, num_prompts: int) -> list[Prompt]:
        self.asked.append(num_prompts)
        return super().next(num_prompts)

    def replace(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        self.asked.append([prompt.prompt_id for prompt in prompts])
        return ShuffledEpochs.next(self, len(prompts))


def test_a_place_has_so_many_tries_and_each_request_an_id_of_its_own() -> None:
    source = Noting([build_prompt(f"p{n}") for n in range(9)])

    def build(prompts: Sequence[Prompt], num_begun: int) -> list[GroupRequest]:
        return build_requests("t", prompts, 1, first=2 + num_begun)

    replacements = Replacements(source, 3, build)
    first, second = build_requests("t", [build_prompt("a"), build_prompt("b")], 1)
    (third,) = replacements.begin(1, [first])
    fourth, fifth = replacements.begin(2, [third, second])
    sixth, extra = replacements.begin(2, [fourth])
    (last,) = replacements.begin(1, [fifth])
    ids = [one.group_id for one in (third, fourth, fifth, sixth, extra, last)]
    assert ids == [f"t-g{slot:04d}" for slot in range(2, 8)]
    # the third try of a place is its last one: what comes then is the source's choice, and not counted to the place
    assert source.asked == [["a"], [third.prompt.prompt_id, "b"], 2, [fifth.prompt.prompt_id]]


def judge_fails_after(version: int) -> Any:
    def judge(completion: Completion) -> Verdict:
        return half_right(completion) if completion.policy_version < version else build_verdict(None)

    return judge


def test_the_guard_looks_at_what_has_come_in_before_more_is_decoded(tmp_path: Path) -> None:
    """32 groups of 2 verdicts: with the 64th the guard may judge, and the run ends within the second batch."""
    config = build_config(tmp_path, **BALANCED | {"train__prompts_per_step": 32})
    system = FakeSystem(config, judge=judge_fails_after(0), engines=Surplus)
    with pytest.raises(RewardError, match=r"64 of the last 64 verdicts are unknown.*Remedy: "):
        train(system.run)
    assert system.run.state.policy_version == 0
    assert len(system.completions()) == 64, "records lack what the error is about"


def test_an_outage_that_the_guard_cannot_see_yet_costs_one_batch_more_in_a_step(tmp_path: Path) -> None:
    """800 known verdicts lie behind the outage, a step has 20: a tenth is reached after 96 unknown ones."""
    settings = BALANCED | {"train__num_steps": 60, "checkpoint__every_steps": 0}
    system = FakeSystem(build_config(tmp_path, **settings), judge=judge_fails_after(40), engines=Surplus)
    with pytest.raises(RewardError, match=r"unknown, more than reward.max_unknown_fraction = 0.1 allows"):
        train(system.run)
    started = [line["groups/started"] for line in system.metrics() if "groups/started" in line]
    assert started[:40] == [10.0] * 40 and started[40:] == [20.0] * 2  # ended in the third one, after 89 verdicts
    assert system.run.state.policy_version == 40
