"""How well the judge's client uses its slots: real requests to a real server, in an event loop where waiting is free.

A slot is used well where it waits for a server, and badly where it is empty, or waits for an answer that never comes.
So the bound is on virtual seconds, which other work on the machine does not change. What requests cost the processor
is measured by tests/bench/judge.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from hybridflow.config.judge_section import JudgeSection
from hybridflow.reward_service.judge.client import JudgeClient
from tests.bench.judge import DELAY_S, SLOT_S_PER_RIGHT_ANSWER
from tests.bench.judge_server import ERROR, FAULTY_TWENTY, NEVER, RIGHT, JudgeServer
from tests.unit.reward_service.judge.virtual_time import VirtualTimeLoop

T = TypeVar("T")
Events = Sequence[tuple[float, Callable[[VirtualTimeLoop], None]]]


def run_virtually(program: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(program)


async def judge(
    server: JudgeServer, section: dict[str, Any], number: int, apart_s: float = 0.0, events: Events = ()
) -> tuple[list[str], dict[str, Any], float]:
    """Votes on `number` answers, of which every second one agrees; the report; seconds.

    Args:
        apart_s: Time from one verdict's request to the next.
        events: What happens meanwhile, and when.
    """
    listening, loop = await server.start(), asyncio.get_running_loop()
    client = JudgeClient(JudgeSection(endpoints=[server.url], **section), random.Random(0))
    for at, event in events:
        loop.call_later(at, event, loop)

    async def decide(index: int) -> str:
        await asyncio.sleep(index * apart_s)
        return (await client.decide("Which?", f"p{index}", "it agrees" if index % 2 else "it differs")).vote

    votes = await asyncio.gather(*(decide(index) for index in range(number)))
    seconds, report = loop.time(), client.report()
    await client.close()
    listening.close()
    return votes, report, seconds


def rightly(number: int) -> list[str]:
    return ["yes" if index % 2 else "no" for index in range(number)]


def test_faults_of_a_server_cost_little_more_than_they_must() -> None:
    """20% refused, 5% failed, 5% never answered, 5% garbage: 0.8 of what the best client there can be would reach."""
    server = JudgeServer(FAULTY_TWENTY, delay_s=DELAY_S)
    votes, report, seconds = run_virtually(judge(server, {"max_concurrency": 16}, 400))
    assert votes == rightly(400)
    assert 400 / seconds >= 0.8 * 16 / SLOT_S_PER_RIGHT_ANSWER, report


def test_a_pause_of_this_process_makes_no_request_late() -> None:
    server = JudgeServer(delay_s=(0.3, 0.4))
    section = {"max_concurrency": 4, "late_after_s": 0.5}
    _, report, _ = run_virtually(judge(server, section, 20, events=[(1.0, lambda loop: loop.stand_still(5.0))]))
    assert (report["late"], report["requests"]) == (0, 20)


def test_where_nobody_answers_all_are_unknown_within_one_deadline() -> None:
    """Also those at the end of the queue: within it in all, not each."""
    server = JudgeServer([NEVER])
    votes, report, seconds = run_virtually(judge(server, {"max_concurrency": 4, "deadline_s": 8.0}, 60))
    assert votes == ["unknown"] * 60 and seconds <= 8.0
    assert report["endpoints"][server.url]["num_opened"] == 1


def test_a_server_that_was_down_is_found_when_it_is_up_again() -> None:
    """For 30 s it fails: nobody waits for it, but one at a time still tries."""
    server = JudgeServer()

    events = [(10.2, lambda _: server.behave([ERROR])), (40.2, lambda _: server.behave([RIGHT]))]
    votes, report, _ = run_virtually(judge(server, {"deadline_s": 4.0}, 100, apart_s=1.0, events=events))
    assert votes[:10] == rightly(10) and votes[-30:] == rightly(30)
    assert {vote for vote, right in zip(votes, rightly(100), strict=True) if vote != right} == {"unknown"}
    assert report["endpoints"][server.url]["state"] == "closed"
