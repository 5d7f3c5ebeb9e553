"""The judge's client against a server on the loopback that misbehaves. No assertion is on a duration."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from hybridflow.config.judge_section import JudgeSection
from hybridflow.errors import RewardError
from hybridflow.reward_service.judge.client import BUSY_S, JudgeCache, JudgeClient, Judgement
from tests.bench.judge_server import BUSY, ERROR, FAULTY_TWENTY, GARBAGE, NEVER, RIGHT, JudgeServer

T = TypeVar("T")


def judge(section: JudgeSection, use: Callable[[JudgeClient], Awaitable[T]]) -> tuple[T, dict[str, Any]]:
    """The result of `use`, and the report of the client."""

    async def run() -> tuple[T, dict[str, Any]]:
        client = JudgeClient(section, random.Random(0))
        try:
            return await use(client), client.report()
        finally:
            await client.close()

    return asyncio.run(run())


def ask_many(number: int) -> Callable[[JudgeClient], Awaitable[list[Judgement]]]:
    async def ask(client: JudgeClient) -> list[Judgement]:
        return await asyncio.gather(*(client.decide("Which?", f"p{n}", gold(n % 2 == 1)) for n in range(number)))

    return ask


def expected(number: int) -> str:
    return "yes" if number % 2 else "no"


def gold(is_equal: bool) -> str:
    return "it agrees" if is_equal else "it differs"


async def ask_one(client: JudgeClient) -> Judgement:
    return await client.decide("Which?", "p", gold(True))


def unused_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


def test_every_verdict_is_right_whatever_the_server_does() -> None:
    """20% refused, 5% failed, 5% never answered, 5% garbage."""
    with JudgeServer(FAULTY_TWENTY, delay_s=(0.001, 0.01)).serving() as server:
        section = JudgeSection(endpoints=[server.url], max_concurrency=8, late_after_s=0.5)
        judgements, report = judge(section, ask_many(120))
    assert [judgement.vote for judgement in judgements] == [expected(n) for n in range(120)]
    assert {RIGHT, BUSY, ERROR, NEVER, GARBAGE} <= server.counts.keys()
    assert report["verdicts"] == 120 and report["unknown"] == 0
    assert {"busy", "server_error", "malformed"} <= report["failures"].keys()
    assert report["unreadable"] > 0 and report["late"] > 0


def test_every_endpoint_down_is_unknown_and_never_no() -> None:
    section = JudgeSection(endpoints=[unused_url(), unused_url()], deadline_s=5.0)
    judgements, report = judge(section, ask_many(100))
    assert [judgement.vote for judgement in judgements] == ["unknown"] * 100
    assert all("every judge endpoint has been down" in j.why and section.endpoints[1] in j.why for j in judgements)
    assert [endpoint["state"] == "closed" for endpoint in report["endpoints"].values()] == [False, False]
    assert report["requests"] < 100, "the breakers hold back what cannot succeed"


def test_one_endpoint_down_costs_no_verdict() -> None:
    down = unused_url()
    with JudgeServer().serving() as server:
        judgements, report = judge(JudgeSection(endpoints=[down, server.url], max_concurrency=4), ask_many(60))
    assert [judgement.vote for judgement in judgements] == [expected(n) for n in range(60)]
    assert report["endpoints"][down]["num_opened"] == 1 and "Connect" in report["endpoints"][down]["why"]
    assert report["endpoints"][server.url]["state"] == "closed"


def test_a_late_request_is_sent_to_the_other_endpoint() -> None:
    with JudgeServer([NEVER]).serving() as stuck, JudgeServer().serving() as server:
        section = JudgeSection(endpoints=[stuck.url, server.url], late_after_s=0.2)
        judgement, report = judge(section, ask_one)
    assert judgement.vote == "yes"
    assert stuck.counts[NEVER] >= 1 and report["hedges"] >= 1


def test_no_answer_at_all_is_unknown_and_says_how_long_it_waited() -> None:
    with JudgeServer([NEVER]).serving() as server:
        judgement, report = judge(JudgeSection(endpoints=[server.url], late_after_s=0.1, deadline_s=0.5), ask_one)
    assert judgement.vote == "unknown" and "within 0.5 s" in judgement.why
    assert report["unknown"] == 1 and report["verdicts"] == 0


@pytest.mark.parametrize("num_votes", [1, 3])
def test_answers_without_a_verdict_are_unknown_after_some_tries(num_votes: int) -> None:
    with JudgeServer(["unreadable"]).serving() as server:
        section = JudgeSection(endpoints=[server.url], max_unreadable=2, num_votes=num_votes)
        judgement, report = judge(section, ask_one)
    assert judgement.vote == "unknown" and "2 answers without one verdict" in judgement.why
    assert report["unreadable"] == report["requests"] == 2 * num_votes


def test_majority_of_three_votes() -> None:
    with JudgeServer(["wrong", RIGHT, RIGHT]).serving() as server:
        judgement, report = judge(JudgeSection(endpoints=[server.url], num_votes=3, max_concurrency=1), ask_one)
    assert judgement.vote == "yes"
    assert report["requests"] in (2, 3), "the third is not needed where two agree"


def test_no_more_votes_are_asked_for_than_a_majority_takes() -> None:
    with JudgeServer().serving() as server:
        judgements, report = judge(JudgeSection(endpoints=[server.url], num_votes=5), ask_many(10))
    assert [judgement.vote for judgement in judgements] == [expected(n) for n in range(10)]
    assert report["requests"] == 3 * 10


def test_concurrency_and_retry_after_are_kept() -> None:
    with JudgeServer([BUSY, RIGHT, RIGHT, RIGHT], retry_after="0.05", delay_s=(0.002, 0.002)).serving() as server:
        section = JudgeSection(endpoints=[server.url], max_concurrency=3)
        judgements, _ = judge(section, ask_many(14))  # too few to learn from when an answer is late
    assert all(judgement.vote != "unknown" for judgement in judgements)
    assert server.most_in_flight <= 3
    assert min(server.pauses_after_busy_s) >= 0.05


def test_a_question_that_every_server_refuses_is_unknown_at_once() -> None:
    with JudgeServer(["bad_request"]).serving() as server:
        judgement, report = judge(JudgeSection(endpoints=[server.url]), ask_one)
    assert judgement.vote == "unknown" and "HTTP 400" in judgement.why
    assert report["requests"] == 1


def test_the_same_question_is_asked_once_and_kept_on_disk(tmp_path: Path) -> None:
    async def ask_twins(client: JudgeClient) -> list[Judgement]:
        return await asyncio.gather(*(client.decide("Which?", "p", gold(True)) for _ in range(8)))

    with JudgeServer().serving() as server:
        section = JudgeSection(endpoints=[server.url], cache_path=str(tmp_path / "judge" / "cache.db"))
        first, _ = judge(section, ask_twins)
        second, report = judge(section, ask_one)
        other_model, _ = judge(section.model_copy(update={"model": "other"}), ask_one)
    assert [j.vote for j in [*first, second, other_model]] == ["yes"] * 10
    assert server.counts[RIGHT] == 2, "one for each model"
    assert (report["cached"], report["requests"]) == (1, 0)


def test_an_unknown_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    with JudgeServer(["unreadable"]).serving() as server:
        judge(JudgeSection(endpoints=[server.url], max_unreadable=1, cache_path=str(path)), ask_one)
    assert sqlite3.connect(path).execute("SELECT count(*) FROM verdicts").fetchone() == (0,)


def test_tokens_and_cost_are_counted() -> None:
    with JudgeServer().serving() as server:
        section = JudgeSection(
            endpoints=[server.url], price_per_million_prompt_tokens=2.0, price_per_million_completion_tokens=10.0
        )
        _, report = judge(section, ask_many(5))
    assert (report["prompt_tokens"], report["completion_tokens"]) == (1000, 50)
    assert report["cost"] == pytest.approx(5 * (200 * 2 + 10 * 10) / 1e6)


def test_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "k-123")
    with JudgeServer().serving() as server:
        judge(JudgeSection(endpoints=[server.url], model="m", api_key_env="JUDGE_KEY", max_tokens=77), ask_one)
    (body,) = map(json.loads, server.bodies)
    assert (body["model"], body["temperature"], body["max_tokens"], body["stream"]) == ("m", 0.0, 77, False)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert server.keys == ["Bearer k-123"]


def test_servers_that_want_another_name_for_the_limit_and_no_temperature() -> None:
    with JudgeServer().serving() as server:
        section = JudgeSection(endpoints=[server.url], length_field="max_completion_tokens", temperature="unset")
        judge(section, ask_one)
    (body,) = map(json.loads, server.bodies)
    assert set(body) == {"model", "messages", "max_completion_tokens", "stream"}


def test_a_cache_that_another_process_locks_is_an_error_and_holds_nothing_up(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    JudgeCache(path).close()
    longest_pause_s = 0.0

    async def ask(client: JudgeClient) -> Judgement:
        nonlocal longest_pause_s
        asked = asyncio.create_task(ask_one(client))
        loop = asyncio.get_running_loop()
        while not asked.done():
            began = loop.time()
            await asyncio.sleep(0.01)
            longest_pause_s = max(longest_pause_s, loop.time() - began)
        return await asked

    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with (
        JudgeServer().serving() as server,
        pytest.raises(RewardError, match=r"cache\.db cannot be written: database is locked. Remedy: end what else"),
    ):
        judge(JudgeSection(endpoints=[server.url], cache_path=str(path)), ask)
    assert longest_pause_s < 0.5 * BUSY_S, "the event loop went on while SQLite waited"


def test_a_cache_that_is_full_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def connect_to_full_disk(*args: Any, **options: Any) -> sqlite3.Connection:
        database = connect(*args, **options)
        database.execute("PRAGMA max_page_count = 3")  # as a full disk does: SQLITE_FULL
        return database

    monkeypatch.setattr(sqlite3, "connect", connect_to_full_disk)
    cache = JudgeCache(tmp_path / "cache.db")
    with pytest.raises(RewardError, match=r"cache\.db cannot be written: database or disk is full"):
        for number in range(1000):
            cache.put(f"{number:064}", "yes", "because " * 100)
    cache.close()


def test_a_cache_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    path.write_text("notes" * 100)
    with pytest.raises(RewardError, match=r"cache\.db cannot be opened.*Remedy"):
        JudgeCache(path)
