"""Asks a language model whether two answers say the same, and is right or unknown however the servers behave.

A verdict is the majority of `num_votes` votes. A vote is a question to one endpoint, asked again after a pause when it
is refused (429), fails, or cannot be read, and asked elsewhere as well when its answer is late. All of it has to fit
into `deadline_s`; what does not is unknown.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hybridflow.config.sections import JudgeSection
from hybridflow.data.template import Message
from hybridflow.reward_service import judge_prompt
from hybridflow.reward_service.judge_cache import JudgeCache, build_key
from hybridflow.reward_service.judge_counts import JudgeCounts
from hybridflow.reward_service.judge_endpoint import Answer, AskError, EndpointClient
from hybridflow.reward_service.judge_pool import Endpoint, EndpointPool
from hybridflow.reward_service.judge_timing import compute_backoff_s

RECHECK_S = 0.25
"""A request that is waited for learns this often from the answers to others when it is late."""
MAX_SIDE_BY_SIDE = 2
"""Requests that one vote waits for at a time."""
ADMITTED_PER_SLOT = 2
"""Verdicts under way for each slot: some pause while others use it."""
OUTAGE_FRACTION = 0.5
"""Part of a deadline after which nobody waits for servers that are all down."""


class Judgement(msgspec.Struct, frozen=True):
    """What the judge says of two answers; `is_equal` is None where it could not say."""

    is_equal: bool | None
    why: str


@dataclass(eq=False)
class _Vote:
    """One question on its way to one readable answer."""

    messages: Sequence[Message]
    ticket: int
    not_before: dict[str, float] = field(default_factory=dict)
    num_failures: int = 0
    num_late: int = 0
    num_unreadable: int = 0
    why: str = "not asked yet"


class JudgeClient:
    """A judge behind one or more endpoints. Made and used within one event loop; `decide` may run many times at once.

    Args:
        rng: Jitter of the pauses.
    """

    def __init__(self, section: JudgeSection, rng: random.Random | None = None) -> None:
        self.counts = JudgeCounts()
        self._section = section
        self._rng = rng or random.Random()
        self._loop = asyncio.get_running_loop()
        self._pool = EndpointPool(
            section.endpoints,
            section.max_concurrency,
            section.max_requests_per_s,
            min(section.late_after_s, section.request_timeout_s),
            self._loop.time,
        )
        self._clients = {url: EndpointClient(url, section) for url in section.endpoints}
        self._cache = JudgeCache(Path(section.cache_path)) if section.cache_path else None
        self._name = f"{section.model}/{judge_prompt.VERSION}/{section.num_votes}"
        self._tickets = itertools.count()
        self._admission = asyncio.Semaphore(ADMITTED_PER_SLOT * section.max_concurrency * len(section.endpoints))
        self._running: dict[bytes, asyncio.Task[Judgement]] = {}

    async def decide(self, question: str, prediction: str, gold: str) -> Judgement:
        """Whether `prediction` says the same as `gold`; from the cache, or within `deadline_s`.

        The same question asked twice at a time is sent once.
        """
        key = build_key(self._name, question, gold, prediction)
        if self._cache is not None and (known := self._cache.get(key)):
            self.counts.verdicts += 1
            self.counts.cached += 1
            return Judgement(*known)
        running = self._running.get(key)
        if running is None:
            running = self._loop.create_task(self._decide(key, question, prediction, gold))
            self._running[key] = running
            running.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(running)

    def report(self) -> dict[str, Any]:
        """Counts, and the state of every endpoint."""
        endpoints = {
            endpoint.url: {
                "state": endpoint.breaker.state,
                "num_opened": endpoint.breaker.num_opened,
                "why": endpoint.breaker.why,
            }
            for endpoint in self._pool.endpoints
        }
        return {**msgspec.to_builtins(self.counts), "endpoints": endpoints}

    async def close(self) -> None:
        """Gives up what is running and closes the connections."""
        await _cancel(list(self._running.values()))
        for client in self._clients.values():
            await client.close()
        if self._cache is not None:
            self._cache.close()

    async def _decide(self, key: bytes, question: str, prediction: str, gold: str) -> Judgement:
        messages = judge_prompt.build_messages(question, prediction, gold)
        async with self._admission:  # the deadline is the judge's, not that of a queue here
            judgement = await self._count_votes(messages, next(self._tickets))
        if judgement.is_equal is None:
            self.counts.unknown += 1
        else:
            self.counts.verdicts += 1
            if self._cache is not None:
                self._cache.put(key, judgement.is_equal, judgement.why)
        return judgement

    async def _count_votes(self, messages: Sequence[Message], ticket: int) -> Judgement:
        """The majority of all votes, as soon as it is certain."""
        votes = [_Vote(messages, ticket) for _ in range(self._section.num_votes)]
        pending = {asyncio.create_task(self._vote(vote)) for vote in votes}
        ends_at = self._loop.time() + self._section.deadline_s
        found: list[bool | None] = []
        why = ""
        try:
            while pending and not why and _majority(found, len(votes)) is None:
                done, pending = await asyncio.wait(pending, timeout=RECHECK_S, return_when=asyncio.FIRST_COMPLETED)
                found += [task.result() for task in done]
                why = self._why_too_late(ends_at)
        finally:
            await _cancel(pending)
        is_equal = _majority(found, len(votes))
        if is_equal is None:
            reasons = "; ".join(sorted({vote.why for vote in votes}))
            return Judgement(None, f"{why or f'no majority of {len(votes)} votes'}: {reasons}")
        num_agree, verdict = found.count(is_equal), "[[YES]]" if is_equal else "[[NO]]"
        return Judgement(is_equal, f"{verdict} by {self._section.model}, {num_agree} of {len(found)} votes")

    def _why_too_late(self, ends_at: float) -> str:
        """Not empty where a verdict that has until `ends_at` is given up now."""
        now, limit_s = self._loop.time(), self._section.deadline_s
        if now >= ends_at:
            return f"no verdict of the judge within {limit_s:g} s"
        down_since = self._pool.down_since
        if down_since is None or now - down_since < OUTAGE_FRACTION * limit_s:
            return ""
        whys = "; ".join(endpoint.breaker.why for endpoint in self._pool.endpoints)
        return f"every judge endpoint has been down for {now - down_since:.0f} s ({whys})"

    async def _vote(self, vote: _Vote) -> bool | None:
        """One readable verdict, however often it has to be asked; None where no endpoint will ever give one."""
        while True:
            if all(vote.not_before.get(url) == math.inf for url in self._clients):
                return None
            try:
                answer = await self._ask(vote)
            except AskError as error:
                vote.why = error.why
                continue
            verdict = judge_prompt.read_verdict(answer.text)
            if verdict is not None:
                return verdict
            self.counts.unreadable += 1
            vote.num_unreadable += 1
            vote.why = f"{vote.num_unreadable} answers without one verdict, last: {answer.text[-100:]!r}"
            if vote.num_unreadable >= self._section.max_unreadable:
                return None

    async def _ask(self, vote: _Vote) -> Answer:
        """The first answer to one request or, where it is late, to it and another one.

        Where no slot is free for another, the late one gives up its own. Raises AskError when none has answered.
        """
        endpoint = await self._pool.acquire(vote.ticket, vote.not_before)
        running = [self._start(endpoint, vote)]
        try:
            while True:
                done = await self._wait_until_late(running, endpoint, vote)
                for task in done:
                    running.remove(task)
                    error = task.exception()
                    if not isinstance(error, AskError):
                        return task.result()
                    if not running:
                        raise error
                if done:
                    continue
                vote.num_late += 1
                self.counts.late += 1
                spare = self._pool.acquire_spare(endpoint)
                if spare is None:
                    raise AskError("timeout", f"{endpoint.url}: its answer was late")
                self.counts.hedges += 1
                endpoint = spare
                running.append(self._start(spare, vote))
                if len(running) > MAX_SIDE_BY_SIDE:
                    await _cancel(running[:-MAX_SIDE_BY_SIDE])
                    del running[:-MAX_SIDE_BY_SIDE]
        finally:
            await _cancel(running)

    async def _wait_until_late(
        self, running: list[asyncio.Task[Answer]], endpoint: Endpoint, vote: _Vote
    ) -> set[asyncio.Task[Answer]]:
        """Those that have ended; empty where none has and the last one started, at `endpoint`, is late."""
        started = self._loop.time()
        while (left_s := started + endpoint.latency.late_s(vote.num_late) - self._loop.time()) > 0:
            done, _ = await asyncio.wait(running, timeout=min(left_s, RECHECK_S), return_when=asyncio.FIRST_COMPLETED)
            if done:
                return done
        return set()

    def _start(self, endpoint: Endpoint, vote: _Vote) -> asyncio.Task[Answer]:
        """One request in a slot that was taken for it, given back in whatever way the task ends."""
        started = self._loop.time()
        self.counts.requests += 1
        task = self._loop.create_task(self._clients[endpoint.url].ask(vote.messages))
        task.add_done_callback(lambda task: self._ended(task, endpoint, vote, self._loop.time() - started))
        return task

    def _ended(self, task: asyncio.Task[Answer], endpoint: Endpoint, vote: _Vote, seconds: float) -> None:
        """Tells the breaker, and the vote when to come here again."""
        if task.cancelled():
            # One late answer says little; that nobody got an answer meanwhile says that the server hangs.
            if seconds >= endpoint.latency.late_s(0) and seconds < self._loop.time() - endpoint.answered_at:
                endpoint.breaker.failed(f"{endpoint.url}: no answer to anybody within {seconds:.1f} s")
            else:
                endpoint.breaker.abandoned()
        elif isinstance(error := task.exception(), AskError):
            self._failed(endpoint, vote, error)
        elif error is None:
            endpoint.latency.answered(seconds)
            endpoint.answered_at = self._loop.time()
            endpoint.breaker.succeeded()
            prices = (self._section.price_per_million_prompt_tokens, self._section.price_per_million_completion_tokens)
            self.counts.answered(task.result().prompt_tokens, task.result().completion_tokens, prices)
        self._pool.release(endpoint)

    def _failed(self, endpoint: Endpoint, vote: _Vote, error: AskError) -> None:
        self.counts.failed(error.kind)
        vote.num_failures += 1
        if error.kind in ("busy", "bad_request"):
            endpoint.breaker.succeeded()  # it is up: it refuses this question, or this moment
        else:
            endpoint.breaker.failed(error.why)
        if error.kind in ("bad_request", "refused"):
            vote.not_before[endpoint.url] = math.inf
        else:
            pause_s = compute_backoff_s(vote.num_failures, error.retry_after_s, self._rng)
            vote.not_before[endpoint.url] = self._loop.time() + pause_s


def _majority(found: list[bool | None], num_votes: int) -> bool | None:
    return next((side for side in (True, False) if 2 * found.count(side) > num_votes), None)


async def _cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
