"""Asks a language model whether two answers say the same, and is right or unknown however the servers behave.

A verdict is the majority of `num_votes` votes, and no more are asked for than that takes. A vote is a question that is
asked until its answer can be read: again after a pause where it is refused for the moment (429), fails or is garbled,
and elsewhere too where its answer is late. All of it has to fit into `deadline_s`; what does not is unknown.

Verdicts may be kept on disk, shared by all workers of a machine: a question is paid for once. That is SQLite in WAL
mode: readers do not wait for a writer, a killed process leaves a database that opens. WAL needs a local disk; a cache
on a network file system is not safe.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from hybridflow.config.judge_section import JudgeSection
from hybridflow.config.reward_sections import THINKING_TAGS
from hybridflow.errors import RewardError
from hybridflow.reward_service.judge.asker import Asker, Question, cancel
from hybridflow.reward_service.judge.response import LENGTH, Answer
from hybridflow.reward_service.judge.server import AskError
from hybridflow.rewards.judge_prompt import JudgeMessage, build_judge_messages, compute_cache_key, remind
from hybridflow.rewards.judge_verdict import Vote, decide, parse_vote
from hybridflow.rewards.text.thinking import Tags, after_thinking

BUSY_S = 3.0
"""Longest wait for another process that writes; a verdict is written in milliseconds."""

_TABLE = """
CREATE TABLE IF NOT EXISTS verdicts (
    key TEXT PRIMARY KEY,
    vote TEXT NOT NULL CHECK (vote IN ('yes', 'no')),
    why TEXT NOT NULL,
    written_at REAL NOT NULL
) WITHOUT ROWID
"""

ADMITTED_PER_SLOT = 2
"""Verdicts under way for each slot: some pause while others use it."""
OUTAGE_FRACTION = 0.5
"""Part of a deadline after which nobody waits for servers that are all down."""
SHOWN_CHARS = 100
"""Characters shown of an answer without a verdict."""
CHECK_S = 0.25
"""Deadlines are looked at this often."""


class Judgement(msgspec.Struct, frozen=True):
    """Vote of the judge on two answers, and why."""

    vote: Vote
    why: str


class JudgeClient:
    """A judge behind one or more endpoints. Made and used within one event loop; `decide` may run many times at once.

    Args:
        tags: Of the judge's thoughts, which are no part of its answer.
        rng: Jitter of the pauses.

    Raises:
        RewardError: the cache cannot be opened.
    """

    def __init__(self, section: JudgeSection, rng: random.Random | None = None, *, tags: Tags = THINKING_TAGS) -> None:
        self._asker = Asker(section, rng or random.Random())
        self._section = section
        self._tags = tags
        self._loop = asyncio.get_running_loop()
        self._cache = JudgeCache(Path(section.cache_path)) if section.cache_path else None
        # SQLite waits for locks and disks: never in the thread of the event loop.
        self._cache_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge-cache")
        self._name = f"{section.model} x {section.num_votes}"
        self._tickets = itertools.count()
        self._admission = asyncio.Semaphore(ADMITTED_PER_SLOT * section.max_concurrency * len(section.endpoints))
        self._running: dict[str, asyncio.Task[Judgement]] = {}

    async def decide(self, question: str, prediction: str, gold: str) -> Judgement:
        """Whether `prediction` says the same as `gold`; from the cache, or within `deadline_s` of being taken up.

        No more than ADMITTED_PER_SLOT verdicts per slot are taken up at a time. The same question asked twice at a
        time is sent once. RewardError where the cache cannot be read or written.
        """
        key = compute_cache_key(self._name, question, prediction, gold)
        running = self._running.get(key)
        if running is None:
            running = self._loop.create_task(self._decide(key, build_judge_messages(question, prediction, gold)))
            self._running[key] = running
            running.add_done_callback(lambda _: self._running.pop(key, None))
        return self._count(await asyncio.shield(running))

    def report(self) -> dict[str, Any]:
        """Counts, and the state of every endpoint."""
        endpoints = {
            endpoint.url: {
                "state": endpoint.breaker.state,
                "num_opened": endpoint.breaker.num_opened,
                "why": endpoint.breaker.why,
            }
            for endpoint in self._asker.slots.endpoints
        }
        return {**msgspec.to_builtins(self._asker.counts), "endpoints": endpoints}

    async def close(self) -> None:
        """Gives up what is running and closes the connections."""
        await cancel(list(self._running.values()))
        await self._asker.close()
        if self._cache is not None:
            await self._loop.run_in_executor(self._cache_thread, self._cache.close)
        self._cache_thread.shutdown()

    async def _decide(self, key: str, messages: Sequence[JudgeMessage]) -> Judgement:
        if self._cache is not None:
            known = await self._loop.run_in_executor(self._cache_thread, self._cache.get, key)
            if known:
                self._asker.counts.cached += 1
                return Judgement(*known)
        async with self._admission:
            judgement = await self._count_votes(messages)
        if self._cache is not None and judgement.vote != "unknown":
            put = self._cache.put
            await self._loop.run_in_executor(self._cache_thread, put, key, judgement.vote, judgement.why)
        return judgement

    def _count(self, judgement: Judgement) -> Judgement:
        if judgement.vote == "unknown":
            self._asker.counts.unknown += 1
        else:
            self._asker.counts.verdicts += 1
        return judgement

    async def _count_votes(self, messages: Sequence[JudgeMessage]) -> Judgement:
        """The majority of all votes, as soon as it is certain. The third of three is asked for where two disagree."""
        ticket, num_votes = next(self._tickets), self._section.num_votes
        ends_at = self._loop.time() + self._section.deadline_s
        questions: list[Question] = []
        pending: set[asyncio.Task[Vote]] = set()
        votes: list[Vote] = []
        # Where an open breaker lets a probe through, somebody has to be it.
        why = "" if any(each.breaker.admits for each in self._asker.slots.endpoints) else self._why_too_late(ends_at)
        try:
            while not why and decide(votes, num_votes) == "unknown":
                num_needed = num_votes // 2 + 1 - max(votes.count("yes"), votes.count("no"))
                while len(pending) < num_needed and len(questions) < num_votes:
                    questions.append(Question(messages, ticket))
                    pending.add(asyncio.create_task(self._vote(questions[-1])))
                if not pending:
                    break
                done, pending = await asyncio.wait(pending, timeout=CHECK_S, return_when=asyncio.FIRST_COMPLETED)
                votes.extend(task.result() for task in done)
                why = self._why_too_late(ends_at)
        finally:
            await cancel(pending)
        decision = decide(votes, num_votes)
        if decision == "unknown":
            reasons = "; ".join(dict.fromkeys(question.describe() for question in questions)) or "nothing was sent"
            return Judgement("unknown", f"{why or f'no majority of {num_votes} votes'}: {reasons}")
        return Judgement(decision, f"{decision}, {votes.count(decision)} of {len(votes)} votes")

    def _why_too_late(self, ends_at: float) -> str:
        """Not empty where a verdict that has until `ends_at` is given up now."""
        now, limit_s = self._loop.time(), self._section.deadline_s
        if now >= ends_at:
            return f"no verdict within {limit_s:g} s"
        down_since = self._asker.slots.down_since
        if down_since is None or now - down_since < OUTAGE_FRACTION * limit_s:
            return ""
        whys = "; ".join(endpoint.breaker.why for endpoint in self._asker.slots.endpoints)
        return f"every judge endpoint has been down for {now - down_since:.0f} s ({whys})"

    async def _vote(self, question: Question) -> Vote:
        """One readable verdict, however often it has to be asked; unknown where no endpoint will ever give one.

        An answer without a verdict is asked for in other words; one that was cut at the limit would be cut again.
        """
        asked, num_unreadable = question.messages, 0
        while not self._asker.is_refused_everywhere(question):
            try:
                answer = await self._asker.ask(question)
            except AskError:
                continue
            vote = parse_vote(answer.text, self._tags) if answer.is_finished else "unknown"
            if vote != "unknown":
                return vote
            self._asker.counts.unreadable += 1
            num_unreadable += 1
            question.unreadable = f"{num_unreadable} answers without one verdict, last: {self._why_unreadable(answer)}"
            if answer.finish_reason == LENGTH or num_unreadable >= self._section.max_unreadable:
                break
            question.messages = remind(asked, num_unreadable)
        return "unknown"

    def _why_unreadable(self, answer: Answer) -> str:
        limit = f"reward.judge.max_tokens = {self._section.max_tokens}"
        if answer.finish_reason == LENGTH:
            return f"it was cut at {limit}: raise it, thoughts count too"
        if not answer.is_finished:
            return f"its finish_reason is {answer.finish_reason[:SHOWN_CHARS] or 'missing'!r}, not 'stop'"
        end = after_thinking(answer.text, self._tags)[-SHOWN_CHARS:] or answer.text[-SHOWN_CHARS:]
        return f"its last line is neither [[YES]] nor [[NO]] alone: {end!r}"


class JudgeCache:
    """One database; used by one thread at a time. Only verdicts that were reached are kept, never an unknown."""

    def __init__(self, path: Path) -> None:
        """Raises RewardError for a file that is no such database, is locked, or cannot be written."""
        self._path = path
        with self._named("be opened"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute(_TABLE)

    def get(self, key: str) -> tuple[Vote, str] | None:
        """(vote, why) under a key of `compute_cache_key`, or None where this was never decided.

        Raises RewardError where it cannot be read within BUSY_S.
        """
        with self._named("be read"):
            return self._database.execute("SELECT vote, why FROM verdicts WHERE key = ?", (key,)).fetchone()

    def put(self, key: str, vote: Vote, why: str) -> None:
        """Keeps a vote, yes or no; the first one stays where two processes asked the same.

        Raises RewardError where it cannot be written within BUSY_S: locked, full, or not allowed.
        """
        with self._named("be written"):
            self._database.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?)", (key, vote, why, time.time()))

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Names the file in whatever goes wrong with it."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise RewardError(
                f"the judge's cache {self._path} cannot {what}: {error}. Remedy: end what else uses it, make room on "
                "its disk, or name another file in reward.judge.cache_path"
            ) from error
