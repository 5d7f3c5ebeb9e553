"""Verifiers that loop, sleep, eat memory, crash or return nonsense cost their own item a verdict, and nothing else."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from hybridflow.errors import RewardError
from hybridflow.reward_service.sandbox.process_scorer import ProcessScorer
from hybridflow.reward_service.sandbox.protocol import Limits, Setup
from hybridflow.types import Scored, ScoreRequest, Unknown, Verdict

DEADLINE_S = 60.0
VERIFIERS = """
import os, time
from hybridflow.types import Scored

def build(fails=False):
    if fails:
        raise ValueError("no such table")
    return verify

def verify(request):
    what = request.text
    if what == "loop":
        while True:
            pass
    if what == "loop in C":
        return max(iter(int, 1))
    if what == "sleep":
        time.sleep(3600)
    if what == "memory":
        return bytearray(1 << 36)
    if what == "exit":
        os._exit(3)
    if what == "raise":
        raise KeyError("gold")
    if what == "leave":
        raise SystemExit(0)
    if what == "fork":
        os.fork()  # both go on from here
    if what == "print":
        os.system("yes | head -c 3000000")
    if what == "nonsense":
        return 1.0
    if what == "above one":
        return Scored(value=1.5, rule="r", extracted="", why="")
    return Scored(value=1.0, rule="good", extracted=what, why=str(os.getpid()))
"""


@pytest.fixture(autouse=True)
def _verifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "verifiers_of_the_test.py").write_text(VERIFIERS)
    monkeypatch.syspath_prepend(str(tmp_path))


def start(wall_s: float = 3600.0) -> ProcessScorer:
    """Only the test of the clock has a short limit by the clock: the machine may be busy."""
    limits = Limits(cpu_s=0.3, wall_s=wall_s, memory_mib=1024)
    return ProcessScorer(Setup(build_verify="verifiers_of_the_test:build", limits=limits))


def score(scorer: ProcessScorer, texts: list[str]) -> list[Verdict]:
    """All submitted at once; verdicts in the order of the texts."""
    for number, text in enumerate(texts):
        request = ScoreRequest(completion_id=f"c{number}", data_source="", ability="", ground_truth="", text=text)
        scorer.submit(request)
    verdicts: dict[str, Verdict] = {}
    end = time.monotonic() + DEADLINE_S
    while len(verdicts) < len(texts):
        assert time.monotonic() < end, f"only {verdicts}"
        for request, verdict in scorer.take_verdicts():
            assert request.completion_id not in verdicts
            verdicts[request.completion_id] = verdict
        time.sleep(0.005)
    return [verdicts[f"c{number}"] for number in range(len(texts))]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("loop", "the verifier used more than 0.3 s of CPU time"),
        ("loop in C", "the verifier used more than 0.3 s of CPU time"),
        ("memory", "the verifier ran out of memory: its process may have 1024 MiB"),
        ("exit", "its scoring process ended with exit code 3"),
        ("raise", "the verifier raised KeyError: 'gold'"),
        ("leave", "the verifier raised SystemExit: 0"),
        ("nonsense", "the verifier returned 1.0, which is neither a reward in [0, 1] nor Unknown"),
    ],
)
def test_one_bad_item_costs_its_own_verdict_alone(text: str, why: str) -> None:
    scorer = start()
    before, bad, *after = score(scorer, ["first", text, "third", "fourth"])
    scorer.close()
    assert bad == Unknown(why=why)
    assert [verdict.extracted for verdict in (before, *after) if isinstance(verdict, Scored)] == [
        "first",
        "third",
        "fourth",
    ]


def test_what_waits_too_long_is_unknown_and_so_is_nothing_else() -> None:
    scorer = start(wall_s=1.0)
    (bad,) = score(scorer, ["sleep"])
    scorer.close()
    assert bad == Unknown(why="the verifier took longer than 1 s")


def test_a_reward_above_one_is_unknown() -> None:
    scorer = start()
    (verdict,) = score(scorer, ["above one"])
    scorer.close()
    assert isinstance(verdict, Unknown) and "neither a reward in [0, 1]" in verdict.why


def test_the_process_stays_alive_between_items() -> None:
    scorer = start()
    verdicts = score(scorer, ["a"] * 20 + ["x" * 1_000_000])
    scorer.close()
    assert {verdict.why for verdict in verdicts if isinstance(verdict, Scored)} == {str(scorer.pid)}


def test_a_killed_process_is_replaced_and_its_item_is_unknown() -> None:
    scorer = start()
    victim = scorer.pid
    os.kill(victim, signal.SIGSTOP)  # so that it still holds the item when it dies
    request = ScoreRequest(completion_id="c", data_source="", ability="", ground_truth="", text="a")
    scorer.submit(request)
    os.kill(victim, signal.SIGKILL)
    while not (verdicts := scorer.take_verdicts()):
        time.sleep(0.005)
    assert verdicts == [(request, Unknown(why="its scoring process ended with signal SIGKILL"))]
    assert [type(verdict) for verdict in score(scorer, ["b"])] == [Scored]
    assert scorer.pid != victim
    scorer.close()


def test_closing_ends_the_process_whatever_it_does() -> None:
    scorer = start()
    request = ScoreRequest(completion_id="c", data_source="", ability="", ground_truth="", text="sleep")
    scorer.submit(request)
    scorer.close()
    assert not psutil.pid_exists(scorer.pid)


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (Setup(build_verify="nowhere_at_all:build"), "ModuleNotFoundError"),
        (Setup(build_verify="verifiers_of_the_test"), "Remedy: write module:function"),
        (Setup(build_verify="verifiers_of_the_test:build", arguments={"fails": True}), "no such table"),
    ],
)
def test_code_that_cannot_be_loaded_is_an_error_at_once(setup: Setup, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        ProcessScorer(setup)


def test_a_verifier_that_forks_gives_one_verdict_and_shifts_none() -> None:
    scorer = start()
    verdicts = score(scorer, ["first", "fork", "third", "fork", "fifth"])
    scorer.close()
    extracted = [verdict.extracted for verdict in verdicts if isinstance(verdict, Scored)]
    assert extracted == ["first", "fork", "third", "fork", "fifth"]


def test_megabytes_of_output_make_an_item_unknown_and_fill_no_log(capfd: pytest.CaptureFixture[str]) -> None:
    """Also of a program that the verifier starts; the item is scored all the same, so "good" is what it would be."""
    scorer = start()
    loud, quiet = score(scorer, ["print", "second"])
    scorer.close()
    assert loud == Unknown(
        why="the verifier printed more than 1 MiB for one completion. Remedy: let it print less",
        rule="good",
    )
    assert isinstance(quiet, Scored) and quiet.extracted == "second"
    shown = capfd.readouterr().err
    assert "more was printed" in shown and shown.count("y") < 5000
