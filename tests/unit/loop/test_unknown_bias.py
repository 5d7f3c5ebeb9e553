"""A judge that fails: what is measured then, when the run stops, and that no figure pretends to know.

The rule passes a part of the right answers, `RULE_RECALL`; the rest goes to the judge, which leaves some unknown.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from hybridflow.algorithms.algorithm import build_algorithm
from hybridflow.algorithms.spec import algorithm_spec
from hybridflow.errors import RewardError
from hybridflow.loop.verdict_guard import MIN_ASKED_UNKNOWN, VerdictGuard
from hybridflow.recording.accuracy import compute_accuracy, compute_bounds
from hybridflow.types import Group, JudgeReport, Scored, Unknown, Verdict
from tests.builders import build_group, build_prompt, build_request
from tests.unit.loop.fakes import build_config

REPORT = JudgeReport(process="p", number=1, counts={}, endpoints={"http://h:1/v1": "closed"})
PROMPT = build_prompt(data_source="bank")
GROUP = 8


@dataclass
class Policy:
    """Answers that are right with probability `accuracy`."""

    accuracy: float
    outage: float
    """Part of the judge's questions that get no verdict."""
    rule_recall: float = 1.0
    has_judge: bool = True

    def verdict(self, rng: random.Random) -> Verdict:
        is_right = rng.random() < self.accuracy
        if is_right and rng.random() < self.rule_recall:
            return Scored(value=1.0, rule="docqa", extracted="5", why="equal")
        if not self.has_judge:
            return Scored(value=0.0, rule="docqa", extracted="5", why="not equal")
        if rng.random() < self.outage:
            return Unknown(why="no verdict within 50 s", rule="docqa", judge_report=REPORT)
        vote = "yes" if is_right else "no"
        return Scored(
            value=float(is_right), rule="docqa", extracted="5", why="", judge="m", judge_vote=vote, judge_report=REPORT
        )

    def groups(self, number: int) -> list[Group]:
        rng = random.Random(0)
        return [self._group(f"g{index:05d}", rng) for index in range(number)]

    def _group(self, group_id: str, rng: random.Random) -> Group:
        request = build_request(PROMPT, GROUP, group_id=group_id)
        return build_group(request, [self.verdict(rng) for _ in range(GROUP)])


@pytest.mark.parametrize(
    ("policy", "reads"),
    [
        (Policy(0.80, outage=0.5), 0.889),
        (Policy(0.95, outage=1.0), 1.000),
        (Policy(0.80, outage=0.5, rule_recall=0.7), 0.872),
        (Policy(0.80, outage=0.0), 0.80),
        (Policy(0.80, outage=1.0, has_judge=False), 0.80),
    ],
)
def test_the_bounds_hold_the_true_accuracy_where_the_mean_of_the_known_does_not(policy: Policy, reads: float) -> None:
    groups = policy.groups(1000)
    bounds = compute_bounds(groups)
    assert compute_accuracy(groups) == pytest.approx(reads, abs=0.015)
    assert bounds.low - 0.015 <= policy.accuracy <= bounds.high + 0.015
    is_known = policy.outage == 0 or not policy.has_judge
    assert (bounds.num_unknown == 0) == is_known == (bounds.low == bounds.high) == (bounds.describe() == "")


@pytest.mark.parametrize("policy", [Policy(0.80, outage=0.5), Policy(0.95, outage=1.0), Policy(0.99, outage=1.0)])
def test_the_run_stops_though_few_of_all_verdicts_are_unknown(policy: Policy) -> None:
    """0.05 to 0.10 of all verdicts are unknown: by all of them alone the run would go on for ever."""
    with pytest.raises(RewardError, match=r"of the last \d+ verdicts that the judge was asked for are unknown") as told:
        VerdictGuard(0.1).add(policy.groups(125))
    assert "model judge (http://h:1/v1 closed)" in str(told.value)


def test_a_judge_that_seldom_fails_and_rules_alone_go_on() -> None:
    VerdictGuard(0.1).add(Policy(0.80, outage=0.05).groups(1000))
    VerdictGuard(0.1).add(Policy(0.0, outage=1.0, has_judge=False).groups(1000))


def test_a_few_failures_at_the_start_are_no_outage() -> None:
    guard = VerdictGuard(0.1)
    failed = Unknown(why="no verdict", rule="docqa", judge_report=REPORT)
    group = build_group(build_request(PROMPT), [failed])
    guard.add([group] * (MIN_ASKED_UNKNOWN - 1))
    with pytest.raises(RewardError, match=f"{MIN_ASKED_UNKNOWN} of the last {MIN_ASKED_UNKNOWN} verdicts that"):
        guard.add([group])


def test_groups_of_a_full_outage_are_dropped_by_their_share_and_not_called_all_right(tmp_path: Path) -> None:
    groups = Policy(0.3, outage=1.0).groups(200)
    algorithm = build_algorithm(algorithm_spec(build_config(tmp_path, reward__min_known_fraction=0.5)))
    _, dropped = algorithm.filter_groups(groups)
    known = {group.group_id: sum(isinstance(m.verdict, Scored) for m in group.members) for group in groups}
    assert set(dropped["known_share_too_low"]) == {name for name, number in known.items() if 2 <= number < 4}
    assert set(dropped["too_few_known"]) == {name for name, number in known.items() if number < 2}
