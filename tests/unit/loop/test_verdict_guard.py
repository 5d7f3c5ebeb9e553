"""When a run stops for its unknown verdicts, and whom it names."""

import pytest

from hybridflow.errors import RewardError
from hybridflow.loop.verdict_guard import MIN_VERDICTS, WINDOW, VerdictGuard
from hybridflow.types import Group, JudgeReport, Unknown, Verdict
from tests.builders import build_group, build_prompt, build_request, build_verdict

PROMPT = build_prompt(data_source="bank", ability="doc-math")


def group(verdicts: list[Verdict]) -> Group:
    return build_group(build_request(PROMPT, len(verdicts)), verdicts)


def test_exactly_the_allowed_share_goes_on_and_one_more_stops() -> None:
    guard = VerdictGuard(0.1)
    guard.add([group([Unknown(why="x")] * 10 + [build_verdict(1.0)] * 90)])
    with pytest.raises(RewardError, match=r"11 of the last 101 .* reward.max_unknown_fraction = 0.1"):
        guard.add([group([Unknown(why="x")])])


def test_the_error_counts_by_who_is_ill_and_gives_an_example_of_each_reason() -> None:
    report = JudgeReport(process="p", number=1, counts={}, endpoints={"http://h:1/v1": "open"})
    verdicts: list[Verdict] = [
        Unknown(why="no answer within 60 s", rule="docqa_within", judge_report=report),
        Unknown(why="gold is empty"),
        Unknown(why="took too long", rule="mine"),
    ]
    with pytest.raises(RewardError) as raised:
        VerdictGuard(0.1).add([group(verdicts * MIN_VERDICTS)])
    message = str(raised.value)
    for name in ("model judge (http://h:1/v1 open)", "verifier of bank / doc-math", "verifier mine"):
        assert f"{name}: {MIN_VERDICTS}" in message
    assert "g-c00: no answer within 60 s" in message and "g-c01: gold is empty" in message


def test_a_few_verdicts_are_not_judged() -> None:
    VerdictGuard(0.0).add([group([Unknown(why="x")] * (MIN_VERDICTS - 1))])


def test_a_look_raises_as_it_would_and_keeps_nothing() -> None:
    guard, ill = VerdictGuard(0.1), [group([Unknown(why="x")] * 10)]
    guard.add([group([build_verdict(1.0)] * 90)])
    for _ in range(3):
        guard.look(ill)
    with pytest.raises(RewardError, match="20 of the last 110"):
        guard.look(ill * 2)
    guard.add(ill)


def test_only_the_recent_ones_count() -> None:
    guard = VerdictGuard(0.1)
    guard.add([group([build_verdict(0.0)] * 100_000)])
    with pytest.raises(RewardError, match=f"101 of the last {WINDOW}"):
        guard.add([group([Unknown(why="x")] * 101)])
