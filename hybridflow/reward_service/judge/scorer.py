"""The scorer of a reward worker: rules first, then the judge, a scorer around another one.

consumes     requests, and the verdicts of the rules
waits for    the judge, in a thread with an event loop of its own
unblocked by its answer, or its deadline
produces     one verdict for each request, in any order
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import uuid
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import msgspec

from hybridflow.config.judge_section import JudgeSection
from hybridflow.config.reward_sections import THINKING_TAGS, RulesSection
from hybridflow.errors import RewardError
from hybridflow.reward_service.judge.client import JudgeClient
from hybridflow.reward_service.sandbox.process_scorer import ProcessScorer
from hybridflow.reward_service.sandbox.protocol import Setup
from hybridflow.rewards.judge_question import NO_QUESTION
from hybridflow.rewards.judge_verdict import combine, find_prediction, told_to_judge
from hybridflow.rewards.text.thinking import Tags
from hybridflow.types import JudgeReport, Scored, ScoreRequest, Unknown, Verdict

CLOSE_TIMEOUT_S = 5.0

_logger = logging.getLogger(__name__)
T = TypeVar("T")


class Scorer(Protocol):
    """Used by one thread. Each request gets exactly one verdict, in any order."""

    def submit(self, request: ScoreRequest) -> None:
        """Takes a request; never blocks."""
        ...

    def take_verdicts(self) -> list[tuple[ScoreRequest, Verdict]]:
        """Each request that is done, with its verdict. Called at least every 0.1 s while anything is under way."""
        ...

    def descriptors(self) -> tuple[list[int], list[int]]:
        """(read, write) descriptors whose readiness means that `take_verdicts` has something to do."""
        ...

    def close(self) -> None:
        """Ends what is under way, without verdicts."""
        ...


class JudgeScorer:
    """A `Scorer`: asks the judge where `rules` gave less than full reward.

    Args:
        rules: Gives the verdicts by rule; closed with this one.
        section: The judge; it has at least one endpoint.
        tags: Of thoughts, in completions and in the judge's answers.

    Raises:
        RewardError: the judge's cache cannot be opened.
    """

    def __init__(self, rules: Scorer, section: JudgeSection, tags: Tags = THINKING_TAGS) -> None:
        self._rules = rules
        self._section = section
        self._tags = tags
        self._failure: RewardError | None = None
        self._verdicts: queue.SimpleQueue[tuple[ScoreRequest, Verdict]] = queue.SimpleQueue()  # from the judge
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._process = uuid.uuid4().hex[:12]
        self._num_reports = 0  # changed in the judge's thread alone
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()
        try:
            self._client = self._run(_make(section, tags)).result()
        except BaseException:
            self._stop_loop()
            raise

    def submit(self, request: ScoreRequest) -> None:
        self._rules.submit(request)

    def take_verdicts(self) -> list[tuple[ScoreRequest, Verdict]]:
        """As `Scorer` says. Raises RewardError once the judge's cache cannot be used."""
        if self._failure is not None:
            raise self._failure
        done: list[tuple[ScoreRequest, Verdict]] = []
        for request, verdict in self._rules.take_verdicts():
            prediction = find_prediction(verdict, request.text, self._tags)
            if prediction and isinstance(verdict, Scored):
                self._run(self._ask(request, verdict, prediction))
            else:
                done.append((request, verdict))
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return done
        while not self._verdicts.empty():
            done.append(self._verdicts.get())
        return done

    def descriptors(self) -> tuple[list[int], list[int]]:
        read, write = self._rules.descriptors()
        return [*read, self._wake], write

    def report(self) -> dict[str, Any]:
        """Counts of the judge, and the state of its endpoints."""
        return self._client.report()

    def close(self) -> None:
        self._rules.close()
        try:
            self._run(self._client.close()).result(CLOSE_TIMEOUT_S)
        finally:
            _logger.info("judge: %s", self._client.report())
            self._stop_loop()

    async def _ask(self, request: ScoreRequest, by_rule: Scored, prediction: str) -> None:
        verdict: Verdict
        if not request.question:
            self._give(request, by_rule, Unknown(why=NO_QUESTION.format(column=self._section.question_column)))
            return
        try:
            gold = told_to_judge(request.golds)
            judgement = await self._client.decide(request.question, prediction, gold)
            verdict = combine(by_rule, judgement.vote, self._section.model, judgement.why)
        except asyncio.CancelledError:
            raise
        except RewardError as error:  # of the cache: it will not get better
            self._failure = error
            os.eventfd_write(self._wake, 1)
            return
        except Exception as error:
            _logger.exception("the judge's client raised on %s", request.completion_id)
            verdict = Unknown(why=f"the judge's client raised {type(error).__name__}: {error}")
        self._give(request, by_rule, verdict)

    def _give(self, request: ScoreRequest, by_rule: Scored, verdict: Verdict) -> None:
        if isinstance(verdict, Unknown):
            verdict = msgspec.structs.replace(verdict, rule=by_rule.rule, extracted=by_rule.extracted)
        verdict = msgspec.structs.replace(verdict, judge_report=self._report())
        self._verdicts.put((request, verdict))
        os.eventfd_write(self._wake, 1)

    def _report(self) -> JudgeReport:
        """The present totals, for the driver: they travel with the verdicts, so no other channel is needed."""
        report = self._client.report()
        endpoints, failures = report.pop("endpoints"), report.pop("failures")
        counts = report | {f"failures/{kind}": number for kind, number in failures.items()}
        counts["breaker_opened"] = sum(endpoint["num_opened"] for endpoint in endpoints.values())
        self._num_reports += 1
        states = {url: endpoint["state"] for url, endpoint in endpoints.items()}
        return JudgeReport(process=self._process, number=self._num_reports, counts=counts, endpoints=states)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_TIMEOUT_S)


def build_scorer(setup: Setup, judge: JudgeSection | None) -> Scorer:
    """The scorer of a reward worker: rules in a killable process, and a judge where one is configured.

    To be called in the thread that uses it: the scoring process ends with the thread that started it.
    """
    rules = ProcessScorer(setup)
    if judge is None or not judge.endpoints:
        return rules
    tags = RulesSection.model_validate(setup.arguments.get("rules") or {}).thinking_tags
    try:
        return JudgeScorer(rules, judge, tags)
    except BaseException:
        rules.close()
        raise


async def _make(section: JudgeSection, tags: Tags) -> JudgeClient:
    return JudgeClient(section, tags=tags)
