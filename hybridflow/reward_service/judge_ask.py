"""One question to whichever endpoint answers it: a slot, a request, a second one where the first is late.

What a request did is told to the endpoint's breaker and latency, and to the question, which then avoids that endpoint
for a while, or for good.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from hybridflow.config.judge_section import JudgeSection
from hybridflow.reward_service.judge_counts import JudgeCounts
from hybridflow.reward_service.judge_endpoint import Answer, AskError, EndpointClient
from hybridflow.reward_service.judge_pool import Endpoint, EndpointPool
from hybridflow.reward_service.judge_timing import compute_backoff_s
from hybridflow.rewards.judge_prompt import JudgeMessage

RECHECK_S = 0.25
"""A request that is waited for learns this often from the answers to others when it is late."""
MAX_SIDE_BY_SIDE = 2
"""Requests that one question waits for at a time."""


@dataclass(eq=False)
class Question:
    """What is asked, and how that went so far."""

    messages: Sequence[JudgeMessage]
    ticket: int
    """Number of its verdict; the lowest is served first."""
    not_before: dict[str, float] = field(default_factory=dict)
    """By url, time before which it is not asked there again."""
    num_failures: int = 0
    num_late: int = 0
    """In a row."""
    why: str = "not asked yet"
    """Of the last failure."""


class Asker:
    """The endpoints of one judge; used within one event loop."""

    def __init__(self, section: JudgeSection, counts: JudgeCounts, rng: random.Random) -> None:
        self._section = section
        self._counts = counts
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._clients = {url: EndpointClient(url, section) for url in section.endpoints}
        self.pool = EndpointPool(
            section.endpoints,
            section.max_concurrency,
            section.max_requests_per_s,
            min(section.late_after_s, section.request_timeout_s),
            self._loop.time,
        )

    def is_refused_everywhere(self, question: Question) -> bool:
        return all(question.not_before.get(url) == math.inf for url in self._clients)

    async def ask(self, question: Question) -> Answer:
        """The first answer to one request or, where it is late, to it and another one.

        Where no slot is free for another, the late one gives up its own. Raises AskError when none has answered.
        """
        endpoint = await self.pool.acquire(question.ticket, question.not_before)
        running = [self._start(endpoint, question)]
        try:
            while True:
                done = await self._wait_until_late(running, endpoint, question)
                for task in done:
                    running.remove(task)
                    error = task.exception()
                    if not isinstance(error, AskError):
                        return task.result()
                    if not running:
                        raise error
                if done:
                    continue
                question.num_late += 1
                self._counts.late += 1
                spare = self.pool.acquire_spare(endpoint)
                if spare is None:
                    raise AskError("timeout", f"{endpoint.url}: its answer was late")
                self._counts.hedges += 1
                endpoint = spare
                running.append(self._start(spare, question))
                if len(running) > MAX_SIDE_BY_SIDE:
                    await cancel(running[:-MAX_SIDE_BY_SIDE])
                    del running[:-MAX_SIDE_BY_SIDE]
        finally:
            await cancel(running)

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()

    async def _wait_until_late(
        self, running: list[asyncio.Task[Answer]], endpoint: Endpoint, question: Question
    ) -> set[asyncio.Task[Answer]]:
        """Those that have ended; empty where none has and the last one started, at `endpoint`, is late."""
        started = self._loop.time()
        while (left_s := started + endpoint.latency.late_s(question.num_late) - self._loop.time()) > 0:
            done, _ = await asyncio.wait(running, timeout=min(left_s, RECHECK_S), return_when=asyncio.FIRST_COMPLETED)
            if done:
                return done
        return set()

    def _start(self, endpoint: Endpoint, question: Question) -> asyncio.Task[Answer]:
        """One request in a slot that was taken for it, given back in whatever way the task ends."""
        started = self._loop.time()
        self._counts.requests += 1
        task = self._loop.create_task(self._clients[endpoint.url].ask(question.messages))
        task.add_done_callback(lambda task: self._ended(task, endpoint, question, self._loop.time() - started))
        return task

    def _ended(self, task: asyncio.Task[Answer], endpoint: Endpoint, question: Question, seconds: float) -> None:
        if task.cancelled():
            # One late answer says little; that nobody got an answer meanwhile says that the server hangs.
            if seconds >= endpoint.latency.late_s(0) and seconds < self._loop.time() - endpoint.answered_at:
                endpoint.breaker.failed(f"{endpoint.url}: no answer to anybody within {seconds:.1f} s")
            else:
                endpoint.breaker.abandoned()
        elif isinstance(error := task.exception(), AskError):
            self._failed(endpoint, question, error)
        elif error is None:
            question.num_late = 0
            endpoint.latency.answered(seconds)
            endpoint.answered_at = self._loop.time()
            endpoint.breaker.succeeded()
            prices = (self._section.price_per_million_prompt_tokens, self._section.price_per_million_completion_tokens)
            self._counts.answered(task.result().prompt_tokens, task.result().completion_tokens, prices)
        self.pool.release(endpoint)

    def _failed(self, endpoint: Endpoint, question: Question, error: AskError) -> None:
        self._counts.failed(error.kind)
        question.num_failures += 1
        if error.kind != "timeout":
            question.num_late = 0  # that server does answer
        question.why = error.why
        if error.kind in ("busy", "bad_request"):
            endpoint.breaker.succeeded()  # it is up: it refuses this question, or this moment
        else:
            endpoint.breaker.failed(error.why)
        if error.kind in ("bad_request", "refused"):
            question.not_before[endpoint.url] = math.inf
        else:
            pause_s = compute_backoff_s(question.num_failures, error.retry_after_s, self._rng)
            question.not_before[endpoint.url] = self._loop.time() + pause_s


async def cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Ends tasks and waits until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
