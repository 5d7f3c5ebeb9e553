"""The loop with fakes at its seams: what is called, in which order, and what is counted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from hybridflow.errors import ModelMismatchError, RewardError, TrainerError, WeightSyncError
from hybridflow.loop.train_loop import train
from hybridflow.types import Completion, Verdict
from hybridflow.weights.manifest import TensorEntry
from tests.unit.loop.fakes import FakeSystem, all_right, build_config, half_right, nobody_knows

STAGES = [
    {"name": "skill", "num_steps": 3, "learning_rate": 1e-2, "conversations_per_step": 2, "num_questions": 1},
    {"name": "habit", "num_steps": 1, "learning_rate": 1e-3, "conversations_per_step": 2, "num_questions": 1},
]


GATE = ["decode p00000", "compare"]
"""Trainer and engines are compared on a text before anything else."""


def test_phases_come_in_order(tmp_path: Path) -> None:
    system = FakeSystem(build_config(tmp_path, train__num_steps=2, warmup__stages=STAGES))
    train(system.run)
    assert system.events == [
        *["reset optimizer", "sft", "sft", "sft", "save"],
        *["reset optimizer", "sft", "reset optimizer", "save"],
        *["publish 0", *GATE, "decode e00000"],
        *["decode t00001", "update", "publish 1"],
        *["decode t00002", "update", "publish 2"],
        *["decode e00002", "save", "export"],
    ]


def test_completions_of_a_step_are_decoded_by_the_version_before_it(tmp_path: Path) -> None:
    system = FakeSystem(build_config(tmp_path))
    train(system.run)
    assert system.run.state.policy_version == system.run.state.rl_step == 3
    lines = system.completions()
    assert {(line["step"], line["policy_version"]) for line in lines} == {(1, 0), (2, 1), (3, 2)}
    assert system.rollout.loaded == [f"weights after {n} updates" for n in range(4)]


def test_records_are_in_request_order_whatever_the_order_of_arrival(tmp_path: Path) -> None:
    system = FakeSystem(build_config(tmp_path, train__num_steps=1))
    train(system.run)
    ids = [line["completion_id"] for line in system.completions()]
    assert ids == [f"t00001-g{group:04d}-c{member:02d}" for group in range(4) for member in range(2)]


def only_first_group(completion: Completion) -> Verdict:
    return half_right(completion) if completion.group_id.endswith("g0000") else all_right(completion)


def test_started_groups_are_trained_or_filtered(tmp_path: Path) -> None:
    system = FakeSystem(build_config(tmp_path), judge=only_first_group)
    train(system.run)
    groups = system.run.state.groups
    assert (groups.started, groups.trained, groups.filtered) == (12, 3, {"zero_variance_all_right": 9})
    step = next(line for line in system.metrics() if "groups/started" in line)
    assert (step["groups/started"], step["groups/trained"]) == (4.0, 1.0)


def only_in_second_step(completion: Completion) -> Verdict:
    return half_right(completion) if completion.group_id.startswith("t00002") else all_right(completion)


def test_a_step_without_groups_to_train_on_leaves_weights_version_and_learning_rate(tmp_path: Path) -> None:
    config = build_config(
        tmp_path, train__num_steps=3, train__lr_warmup_steps=4, train__learning_rate=0.4, eval__num_prompts=0
    )
    system = FakeSystem(config, judge=only_in_second_step)
    train(system.run)
    assert system.events == [
        *["publish 0", *GATE, "decode t00001", "decode t00002", "update", "publish 1", "decode t00003", "save"],
        "export",
    ]
    assert (system.run.state.rl_step, system.run.state.policy_version) == (3, 1)
    assert system.trainer.learning_rates == pytest.approx([0.1])  # the first of the warm-up: step 1 used none
    assert "policy/loss" not in system.metrics()[0]
    assert {line["policy_version"] for line in system.completions() if line["step"] == 3} == {1}


def never_for_one(completion: Completion) -> Verdict | None:
    return None if completion.completion_id == "t00001-g0001-c01" else half_right(completion)


def test_a_run_whose_verdicts_stay_away_leaves_the_completions_that_its_error_names(tmp_path: Path) -> None:
    config = build_config(tmp_path, eval__num_prompts=0, reward__timeout_s=0.1, algorithm__num_completions=2)
    system = FakeSystem(config, judge=never_for_one)
    with pytest.raises(RewardError, match="t00001-g0001-c01"):
        train(system.run)
    records = {line["completion_id"]: line for line in system.completions()}
    assert len(records) == 8
    verdict = records["t00001-g0001-c01"]["verdict"]
    assert (verdict["status"], verdict["why"]) == ("unknown", "no verdict within reward.timeout_s = 0.1 s")


def test_an_update_that_changed_nothing_is_no_new_version(tmp_path: Path) -> None:
    system = FakeSystem(build_config(tmp_path, train__num_steps=1, eval__num_prompts=0))
    system.trainer.num_skipped = 1
    train(system.run)
    assert (system.run.state.rl_step, system.run.state.policy_version) == (1, 0)


def test_without_anything_to_train_on_the_gap_is_unknown(tmp_path: Path) -> None:
    system = FakeSystem(build_config(tmp_path, train__num_steps=2, eval__num_prompts=0), judge=all_right)
    train(system.run)
    assert system.run.state.groups.trained == 0
    assert math.isnan(system.run.state.logprob_gap_mean_abs)


def test_each_optimizer_step_is_a_line(tmp_path: Path) -> None:
    config = build_config(tmp_path, train__num_steps=1, train__mini_batch_prompts=2)
    system = FakeSystem(config)
    train(system.run)
    lines = [json.loads(line) for line in system.folder.updates.read_text().splitlines()]
    assert [(line["step"], line["train/mini_batch"]) for line in lines] == [(1, 0.0), (1, 1.0)]
    step = next(line for line in system.metrics() if "policy/loss" in line)
    assert (step["train/updates"], step["train/response_tokens"]) == (2.0, 20.0)


def test_checkpoint_and_evaluation_when_due(tmp_path: Path) -> None:
    config = build_config(tmp_path, train__num_steps=5, checkpoint__every_steps=2, eval__every_steps=2)
    system = FakeSystem(config)
    train(system.run)
    steps = [event for event in system.events if event.startswith(("publish", "decode e", "save"))]
    assert steps == [
        *["publish 0", "decode e00000", "publish 1"],
        *["publish 2", "decode e00002", "save", "publish 3"],
        *["publish 4", "decode e00004", "save"],
        *["publish 5", "decode e00005", "save"],
    ]


def test_evaluation_is_greedy_and_training_is_not(tmp_path: Path) -> None:
    system = FakeSystem(build_config(tmp_path, train__num_steps=1))
    train(system.run)
    assert [sampling.temperature for sampling in system.rollout.samplings] == [1.0, 0.0, 1.0, 0.0]  # the gate first
    state = system.run.state
    assert [one["test"].accuracy for one in (state.evals_before, state.evals_latest)] == [1.0, 1.0]  # member 0 is right


def test_without_steps_accuracy_is_measured_once(tmp_path: Path) -> None:
    system = FakeSystem(build_config(tmp_path, train__num_steps=0))
    train(system.run)
    assert system.events == ["publish 0", *GATE, "decode e00000", "export"]
    assert system.run.state.evals_latest == system.run.state.evals_before
    assert system.run.state.evals_latest["test"].accuracy == 1.0


def test_learning_rate_warms_up_linearly_and_stays(tmp_path: Path) -> None:
    config = build_config(tmp_path, train__num_steps=6, train__lr_warmup_steps=4, train__learning_rate=0.4)
    system = FakeSystem(config)
    train(system.run)
    assert system.trainer.learning_rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_a_decay_ends_where_it_is_told(tmp_path: Path) -> None:
    config = build_config(
        tmp_path,
        train__num_steps=5,
        train__lr_schedule="linear",
        train__lr_decay_steps=3,
        train__lr_min_ratio=0.5,
        train__lr_warmup_steps=0,
        train__learning_rate=0.4,
    )
    system = FakeSystem(config)
    train(system.run)
    assert system.trainer.learning_rates == pytest.approx([0.4, 0.3, 0.2, 0.2, 0.2])


def test_each_warmup_stage_warms_its_own_learning_rate_up(tmp_path: Path) -> None:
    system = FakeSystem(build_config(tmp_path, warmup__stages=STAGES, warmup__lr_warmup_steps=2))
    train(system.run)
    assert system.trainer.sft_learning_rates == pytest.approx([0.5e-2, 1e-2, 1e-2, 0.5e-3])


def test_skipped_updates_and_truncated_completions_are_counted(tmp_path: Path) -> None:
    system = FakeSystem(build_config(tmp_path))
    system.trainer.num_skipped = 1
    system.rollout.finish_reason = "length"
    train(system.run)
    assert system.run.state.num_skipped_updates == 3
    assert system.run.state.num_truncated == 3 * 4 * 2
    assert [line["train/skipped"] for line in system.metrics() if "train/skipped" in line] == [1.0, 1.0, 1.0]


def resumed(config: Any) -> FakeSystem:
    """The same run in a new process."""
    return FakeSystem(config, is_resumed=True)


def test_a_resumed_run_goes_on_where_the_checkpoint_is(tmp_path: Path) -> None:
    config = build_config(tmp_path, train__num_steps=4, checkpoint__every_steps=2, warmup__stages=STAGES)
    straight = FakeSystem(config)
    train(straight.run)

    config = build_config(tmp_path / "other", train__num_steps=4, checkpoint__every_steps=2, warmup__stages=STAGES)
    stopped = FakeSystem(config)
    stopped.trainer.update = fail_at(stopped.trainer.update, 3)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TrainerError):
        train(stopped.run)
    again = resumed(config)
    train(again.run)
    assert again.events == [
        *["publish 2", *GATE, "decode t00003", "update", "publish 3", "decode t00004", "update", "publish 4"],
        *["decode e00004", "save", "export"],
    ]
    assert again.rollout.loaded[0] == "weights after 2 updates"
    assert again.run.state.groups == straight.run.state.groups
    assert again.run.state.reward_means == straight.run.state.reward_means
    prompts = [line["prompt_id"] for line in again.completions() if line["step"] > 2]
    assert prompts == [line["prompt_id"] for line in straight.completions() if line["step"] > 2]


def fail_at(method: Any, number: int) -> Any:
    calls = 0

    def call(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise TrainerError("train worker 0 died")
        return method(*arguments)

    return call


def test_a_run_stopped_after_one_warmup_stage_does_the_other(tmp_path: Path) -> None:
    config = build_config(tmp_path, train__num_steps=0, warmup__stages=STAGES)
    stopped = FakeSystem(config)
    stopped.trainer.start_sft_step = fail_at(stopped.trainer.start_sft_step, 4)
    with pytest.raises(TrainerError):
        train(stopped.run)
    again = resumed(config)
    train(again.run)
    assert again.events[:4] == ["reset optimizer", "sft", "reset optimizer", "save"]
    assert again.run.state.warmup_stages_done == 2


def test_unknown_verdicts_leave_a_checkpoint_that_can_be_read(tmp_path: Path) -> None:
    config = build_config(tmp_path, train__num_steps=1)
    system = FakeSystem(config, judge=nobody_knows)
    train(system.run)
    again = resumed(config)
    assert again.run.state.reward_means == [None]
    assert again.run.state.groups.filtered == {"too_few_known": 4}
    train(again.run)
    assert "decode e00000" not in again.events, "accuracy before RL was measured again, on other weights"


def test_engines_that_confirm_other_weights_stop_the_run(tmp_path: Path) -> None:
    system = FakeSystem(build_config(tmp_path))
    system.trainer.end_weights = lambda: [TensorEntry("w", (1,), "float32", 99)]
    with pytest.raises(WeightSyncError, match=r"version 0.*differing \['w'\]"):
        train(system.run)
    assert not any(event.startswith("decode") for event in system.events)


def test_a_finished_run_that_is_resumed_evaluates_nothing_again(tmp_path: Path) -> None:
    config = build_config(tmp_path, train__num_steps=1)
    finished = FakeSystem(config)
    train(finished.run)
    resumed = FakeSystem(config, state=finished.run.state)
    train(resumed.run)
    lines = [json.loads(line) for line in resumed.folder.eval_completions.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0] * 4 + [1] * 4
    assert resumed.run.state.evals_latest == finished.run.state.evals_latest


def test_the_overlong_penalty_is_logged_apart_from_the_reward(tmp_path: Path) -> None:
    """Two tokens of at most 8, with a buffer of 8: 2 / 8 each. Rewards and evaluation do not change."""
    config = build_config(tmp_path, train__num_steps=2, rollout__max_new_tokens=8, reward__overlong__buffer_tokens=8)
    system = FakeSystem(config)
    train(system.run)
    step = next(line for line in system.metrics() if "groups/started" in line)
    assert (step["reward/mean"], step["reward/overlong_mean"], step["reward/overlong_fraction"]) == (0.5, -0.25, 1.0)
    assert {(line["reward"], line["overlong"]) for line in system.completions()} == {(1.0, -0.25), (0.0, -0.25)}
    assert system.run.state.evals_latest["test"].accuracy == 1.0
    state = system.run.state
    assert (state.overlong_sum, state.num_shaped) == (-0.25 * 16, 16)


def test_a_trainer_that_computes_another_model_than_the_engines_stops_the_run(tmp_path: Path) -> None:
    """Before evaluation and steps; 0.002 per token is more than rounding in float32."""
    system = FakeSystem(build_config(tmp_path))
    system.trainer.gate_gap = 0.002
    with pytest.raises(ModelMismatchError, match=r"differ by 0.002 .* train.max_gate_gap = 0.001. Likely cause: "):
        train(system.run)
    assert system.events == ["publish 0", *GATE]


def test_a_gap_that_grows_later_stops_the_run_after_its_step(tmp_path: Path) -> None:
    """The fake trainer's is 0.25 in every step."""
    system = FakeSystem(build_config(tmp_path, train__max_logprob_gap=0.2))
    with pytest.raises(ModelMismatchError, match=r"step 1: .* 0.25 per token .* above train.max_logprob_gap = 0.2"):
        train(system.run)
    assert [line["policy/logprob_gap"] for line in system.metrics() if "policy/logprob_gap" in line] == [0.25]
