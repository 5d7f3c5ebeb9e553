"""A run that taught nothing says so, with counts and what to try; a run that fails leaves what its error names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybridflow.errors import RewardError
from hybridflow.loop.train_loop import train
from hybridflow.recording.state import GroupCounts, RunState
from hybridflow.recording.summary import diagnose, name_status
from hybridflow.types import Completion, Scored, Unknown, Verdict
from tests.unit.loop.fakes import FakeSystem, build_config, half_right


def test_counts_and_remedies_of_a_run_without_a_gradient() -> None:
    """The figures of 32 groups of 2."""
    state = RunState(
        rl_step=4,
        groups=GroupCounts(started=32, filtered={"zero_variance_all_right": 2, "zero_variance_all_wrong": 30}),
        num_completions=64,
        num_unanswered=45,
        num_truncated=12,
        num_idle_steps=4,
    )
    assert name_status(state) == "finished, nothing learnt"
    head, *tries = diagnose(state)
    assert head == (
        "no group of 32 had rewards that differ, so no step had a gradient: 94% of the groups all wrong; 6% of the "
        "groups all right; 45 of 64 completions without an answer sentence; 12 of 64 completions cut at "
        "rollout.max_new_tokens"
    )
    assert [line.split()[1] for line in tries] == ["ask", "easier"]  # a fifth is cut: no word on that


@pytest.mark.parametrize(
    ("state", "status", "said"),
    [
        (RunState(), "finished", ""),
        (RunState(rl_step=9, policy_version=9, num_idle_steps=4), "finished", ""),
        (
            RunState(
                rl_step=9,
                policy_version=4,
                num_idle_steps=5,
                groups=GroupCounts(started=9, trained=4, filtered={"zero_variance_all_right": 5}),
                num_completions=9,
            ),
            "finished",
            "the last 5 of 9 steps had no gradient: 56% of the groups all right\ntry: harder rows",
        ),
        (
            RunState(rl_step=1, num_idle_steps=1, groups=GroupCounts(started=4, filtered={"zero_variance": 4})),
            "finished, nothing learnt",
            "no group of 4 had rewards that differ, so no step had a gradient: 100% of the groups of one reward, "
            "neither right nor wrong\ntry: a verifier whose value depends on the answer",
        ),
        (
            RunState(rl_step=1, num_idle_steps=1, groups=GroupCounts(started=4, filtered={"stale": 4})),
            "finished, nothing learnt",
            "no group of 4 had rewards that differ, so no step had a gradient: 100% of the groups stale\ntry: more",
        ),
        (
            RunState(rl_step=2, num_skipped_updates=2, groups=GroupCounts(started=2, trained=2)),
            "finished, nothing learnt",
            "all 2 updates were skipped",
        ),
    ],
)
def test_status_and_diagnosis(state: RunState, status: str, said: str) -> None:
    assert name_status(state) == status
    told = "\n".join(diagnose(state))
    assert told.startswith(said) if said else not told


def unanswered(completion: Completion) -> Verdict:
    return Scored(value=0.0, rule="no_answer", extracted="", why="")


def test_a_run_counts_what_its_diagnosis_needs(tmp_path: Path) -> None:
    system = FakeSystem(build_config(tmp_path, train__num_steps=2, eval__num_prompts=0), judge=unanswered)
    train(system.run)
    state = system.run.state
    assert (state.num_completions, state.num_unanswered, state.num_idle_steps) == (16, 16, 2)
    assert name_status(state) == "finished, nothing learnt"
    system = FakeSystem(build_config(tmp_path / "b", train__num_steps=1, eval__num_prompts=0), judge=half_right)
    train(system.run)
    assert system.run.state.num_idle_steps == 0 and name_status(system.run.state) == "finished"


def only_training_fails(completion: Completion) -> Verdict:
    if completion.group_id.startswith("t"):
        return Unknown(why=f"ill on {completion.completion_id}")
    return half_right(completion)


def test_a_run_that_fails_leaves_the_completions_that_its_error_names(tmp_path: Path) -> None:
    config = build_config(tmp_path, train__prompts_per_step=64, eval__num_prompts=0)
    system = FakeSystem(config, judge=only_training_fails)
    with pytest.raises(RewardError, match="verdicts are unknown") as caught:
        train(system.run)
    lines = [json.loads(line) for line in system.folder.completions.read_text().splitlines()]
    named = [line for line in lines if f"{line['completion_id']}: ill on" in str(caught.value)]
    assert named and len(lines) == 128 and {line["step"] for line in lines} == {1}
    assert named[0]["verdict"]["why"] == f"ill on {named[0]['completion_id']}"
