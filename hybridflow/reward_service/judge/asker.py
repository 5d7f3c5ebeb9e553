"""One question to whichever endpoint answers it: a slot, a request, a second one where the first is late.

What a request did is told to its endpoint, and to the question, which then avoids that endpoint for a while, or for
good.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hybridflow.config.judge_section import JudgeSection
from hybridflow.reward_service.judge.endpoint_state import Endpoint, compute_backoff_s
from hybridflow.reward_service.judge.response import Answer
from hybridflow.reward_service.judge.server import AskError, EndpointClient
from hybridflow.reward_service.judge.slots import Slots
from hybridflow.rewards.judge_prompt import JudgeMessage

RECHECK_S = 0.1
"""A question that waits learns this often from the answers to others when it is late, and whether a slot is free."""
SHORTEST_STEP_S = 0.001
OWN_PAUSE_S = 0.05
"""A wait that took so much longer than it should have held a pause of this process, or of its machine, for which no
server is held late."""
LATE_FRACTION = 0.2
"""Part of a verdict's deadline after which any answer is late: there is time to ask once more, and elsewhere."""
MAX_TOLD = 6
"""Kinds of outcome that an unknown verdict lists."""
MAX_SIDE_BY_SIDE = 2
"""Requests that one question waits for at a time."""
TOKENS_OF_A_PRICE = 1_000_000


class JudgeCounts(msgspec.Struct):
    """Requests, answers, failures and cost of a judge since the start of this process."""

    verdicts: int = 0
    """Yes and no, those included that were cached or asked for by two at a time."""
    unknown: int = 0
    cached: int = 0
    """Verdicts among these that came from the cache."""
    requests: int = 0
    answers: int = 0
    """Chat completions, readable or not."""
    unreadable: int = 0
    """Answers among these without exactly one kind of verdict."""
    late: int = 0
    """Requests given up or doubled because their answer took too long."""
    hedges: int = 0
    """Requests among these that were doubled."""
    failures: dict[str, int] = {}
    """By kind: busy (429), server_error, refused, timeout, unreachable, malformed."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """In the currency of the prices of the section."""


@dataclass(eq=False)
class Question:
    """A chat for the judge, and how asking it went so far."""

    messages: Sequence[JudgeMessage]
    ticket: int
    """Number of its verdict; the lowest is served first."""
    not_before: dict[str, float] = field(default_factory=dict)
    """By url, time before which it is not asked there again."""
    num_failures: int = 0
    num_late: int = 0
    """In a row."""
    tried: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """By url and what came of it: seconds that each request took."""
    unreadable: str = ""
    """Why no verdict could be read from the last answer."""

    def describe(self) -> str:
        """Tells a user what was tried, and what came of it."""
        if not self.tried:
            return "nothing was sent: every slot of every endpoint was taken, or its endpoint cut off"
        told = [
            f"{len(seconds)} {'request' if len(seconds) == 1 else 'requests'} to {url}: {what} (longest "
            f"{max(seconds):.1f} s)"
            for (url, what), seconds in list(self.tried.items())[:MAX_TOLD]
        ]
        return "; ".join([*told, self.unreadable] if self.unreadable else told)


@dataclass(eq=False)
class _Request:
    """One request of a question, in a slot of its own."""

    task: asyncio.Task[Answer]
    endpoint: Endpoint
    waited_s: float = 0.0
    """Without pauses of this process."""
    is_ended: bool = False
    """Whether what came of it is known to question and endpoint: a moment after the task is done."""

    def is_late(self, num_late: int) -> bool:
        return self.waited_s >= self.endpoint.latency.late_s(num_late)


class Asker:
    """The endpoints of one judge; used within one event loop."""

    def __init__(self, section: JudgeSection, rng: random.Random) -> None:
        self.counts = JudgeCounts()
        self._section = section
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._clients = {url: EndpointClient(url, section) for url in section.endpoints}
        late_after_s = min(section.late_after_s, section.request_timeout_s, LATE_FRACTION * section.deadline_s)
        self.slots = Slots(
            [
                Endpoint(url, section.max_concurrency, section.max_requests_per_s, late_after_s, self._loop.time)
                for url in section.endpoints
            ]
        )

    def is_refused_everywhere(self, question: Question) -> bool:
        return all(question.not_before.get(url) == math.inf for url in self._clients)

    async def ask(self, question: Question) -> Answer:
        """The first answer to one request or, where it is late, to it and another one.

        Where no slot is free for another, the late one gives up its own. Raises AskError when none has answered.
        """
        running = [self._start(await self.slots.acquire(question.ticket, question.not_before), question)]
        try:
            while True:
                await self._wait(running)
                for request in [request for request in running if request.is_ended]:
                    running.remove(request)
                    error = request.task.exception()
                    if not isinstance(error, AskError):
                        return request.task.result()
                    if not running:
                        raise error
                # One of two is late only after the longer time of a question that is slow everywhere.
                if running[-1].is_late(question.num_late if len(running) == MAX_SIDE_BY_SIDE else 0):
                    await self._double_or_give_up(running, question)
        finally:
            await cancel([request.task for request in running])

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()

    async def _wait(self, running: list[_Request]) -> None:
        """Until one has ended, or the next look at whether the last is late."""
        left_s = running[-1].endpoint.latency.late_s(0) - running[-1].waited_s
        began, step_s = self._loop.time(), min(max(left_s, SHORTEST_STEP_S), RECHECK_S) if left_s > 0 else RECHECK_S
        tasks = [request.task for request in running]
        await asyncio.wait(tasks, timeout=step_s, return_when=asyncio.FIRST_COMPLETED)
        seconds = self._loop.time() - began
        # Half a step is never the last one: after a pause there is a look at what came in meanwhile.
        counted_s = seconds if seconds <= step_s + OWN_PAUSE_S else 0.5 * step_s
        for request in running:
            request.waited_s += counted_s

    async def _double_or_give_up(self, running: list[_Request], question: Question) -> None:
        """Another request beside the late one; where no slot is free for it, AskError once that had its time."""
        late = running[-1]
        spare = self.slots.acquire_spare(late.endpoint, question.not_before)
        if spare is None and not late.is_late(question.num_late):
            return
        question.num_late += 1
        self.counts.late += 1
        if spare is None:
            raise AskError("timeout", f"{late.endpoint.url}: its answer was late")
        self.counts.hedges += 1
        running.append(self._start(spare, question))
        if len(running) > MAX_SIDE_BY_SIDE:
            await cancel([running.pop(0).task])

    def _start(self, endpoint: Endpoint, question: Question) -> _Request:
        """One request in a slot that was taken for it, given back in whatever way the task ends."""
        started = self._loop.time()
        self.counts.requests += 1
        task = self._loop.create_task(self._clients[endpoint.url].ask(question.messages))
        request = _Request(task, endpoint)
        task.add_done_callback(lambda _: self._ended(request, question, self._loop.time() - started))
        return request

    def _ended(self, request: _Request, question: Question, seconds: float) -> None:
        request.is_ended = True
        task, endpoint = request.task, request.endpoint
        if task.cancelled():
            what = "no answer until it was given up"
            endpoint.given_up(seconds)
        elif (error := task.exception()) is None:
            what = "an answer"
            question.num_late = 0
            endpoint.answered(seconds)
            self._count(task.result())
        elif isinstance(error, AskError):
            what = error.why.removeprefix(f"{endpoint.url}: ")
            self._failed(endpoint, question, error)
        else:  # whoever asks gets it
            what = type(error).__name__
            endpoint.breaker.abandoned()
        question.tried.setdefault((endpoint.url, what), []).append(seconds)
        self.slots.release(endpoint)

    def _failed(self, endpoint: Endpoint, question: Question, error: AskError) -> None:
        self.counts.failures[error.kind] = self.counts.failures.get(error.kind, 0) + 1
        question.num_failures += 1
        if error.kind != "timeout":
            question.num_late = 0  # that server does answer
        if error.kind in ("bad_request", "refused"):
            endpoint.declined(is_final=True)
            question.not_before[endpoint.url] = math.inf
            return
        if error.kind == "busy":
            endpoint.declined(is_final=False)
        else:
            endpoint.failed(error.why)
        num_failures = question.num_failures if endpoint.is_strained else 1
        pause_s = compute_backoff_s(num_failures, error.retry_after_s, self._rng)
        question.not_before[endpoint.url] = self._loop.time() + pause_s

    def _count(self, answer: Answer) -> None:
        counts, section = self.counts, self._section
        counts.answers += 1
        counts.prompt_tokens += answer.prompt_tokens
        counts.completion_tokens += answer.completion_tokens
        counts.cost += (
            answer.prompt_tokens * section.price_per_million_prompt_tokens
            + answer.completion_tokens * section.price_per_million_completion_tokens
        ) / TOKENS_OF_A_PRICE


async def cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Ends tasks and waits until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
