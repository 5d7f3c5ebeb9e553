"""Totals of the judges of all workers, from the reports that travel with verdicts."""

from __future__ import annotations

from hybridflow.recording.judge_totals import JudgeTotals
from hybridflow.types import Group, JudgeReport, Scored, Unknown, Verdict
from tests.builders import build_completion, build_request, build_scored

URL = "http://h:1/v1"


def group_with(*said: tuple[str, Verdict]) -> Group:
    """A group of these verdicts, each with the worker that gave it."""
    request = build_request(num_completions=len(said))
    members = [
        build_scored(build_completion(request, index), verdict, scored_by=worker)
        for index, (worker, verdict) in enumerate(said)
    ]
    return Group(group_id=request.group_id, prompt=request.prompt, members=members)


def report(process: str, number: int, requests: float, state: str = "closed") -> JudgeReport:
    return JudgeReport(process=process, number=number, counts={"requests": requests}, endpoints={URL: state})


def no(with_report: JudgeReport) -> Scored:
    return Scored(value=0.0, rule="docqa", extracted="x", why="", judge_vote="no", judge_report=with_report)


def test_the_last_report_of_each_process_counts_in_whatever_order_verdicts_come() -> None:
    totals: dict[str, float] = {"requests": 100.0}  # of the run before it was resumed
    judge = JudgeTotals(totals)
    judge.add([group_with(("a", no(report("p1", 3, 7))), ("a", no(report("p1", 1, 2))), ("b", no(report("q1", 1, 5))))])
    assert (totals["requests"], totals["no"]) == (112.0, 3.0)
    assert judge.take_metrics() == {"judge/requests": 12.0, "judge/no": 3.0, "judge/endpoints_down": 0.0}


def test_a_step_has_what_is_new_and_a_new_process_begins_at_zero() -> None:
    judge = JudgeTotals({})
    judge.add([group_with(("a", no(report("p1", 1, 7))))])
    judge.take_metrics()
    judge.add([group_with(("a", no(report("p1", 2, 9))), ("a", no(report("p2", 1, 4))))])
    assert judge.take_metrics() == {"judge/requests": 6.0, "judge/no": 2.0, "judge/endpoints_down": 0.0}
    assert judge.summary() == {"requests": 13.0, "no": 3.0, "endpoints": {URL: "closed"}}


def test_an_endpoint_is_as_ill_as_any_worker_says() -> None:
    judge = JudgeTotals({})
    judge.add(
        [group_with(("a", Unknown(why="down", judge_report=report("p1", 1, 9, "open"))), ("b", no(report("q1", 1, 1))))]
    )
    assert judge.take_metrics()["judge/endpoints_down"] == 1.0
    assert judge.take_news() == [f"judge {URL} is cut off: most of its calls failed"]
    assert judge.take_news() == []
    judge.add([group_with(("a", no(report("p1", 2, 10))))])
    assert judge.take_metrics()["judge/endpoints_down"] == 0.0
    assert judge.take_news() == [f"judge {URL} answers again"]


def test_the_summary_has_whole_numbers_and_costs_without_the_noise_of_their_sums() -> None:
    judge = JudgeTotals({})
    for number in (1, 2, 3):
        judge.add([group_with(("a", no(report("p1", number, number * 0.1))))])
    assert judge.summary() == {"requests": 0.3, "no": 3, "endpoints": {URL: "closed"}}


def test_a_run_without_a_judge_says_nothing_of_one() -> None:
    judge = JudgeTotals({})
    judge.add([group_with(("a", Scored(value=1.0, rule="docqa", extracted="x", why="")))])
    assert (judge.take_metrics(), judge.summary()) == ({}, None)
