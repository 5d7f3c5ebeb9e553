"""The reward service for the time of one command: stream, workers and their scoring processes, without Ray.

Each worker's loop is a thread here, as it only passes messages on; verifiers run in its scoring process, as in
training.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hybridflow.config.reward_sections import RewardSection
from hybridflow.errors import RewardError
from hybridflow.reward_service.judge.scorer import JudgeScorer, build_scorer
from hybridflow.reward_service.sandbox.protocol import rules_setup
from hybridflow.reward_service.worker import RewardWorkerLoop
from hybridflow.types import Completion, GroupRequest, Verdict
from hybridflow.wire.completion_sender import CompletionSender
from hybridflow.wire.messages import MAX_CREDITS
from hybridflow.wire.reward_stream import RewardStream

CHECK_S = 0.5
"""A worker that has failed is noticed within this time."""
JOIN_S = 10.0
FLUSH_S = 0.5
"""After the last verdict nothing is left to send, and after Ctrl-C nobody waits for it."""


class _Worker:
    """One worker's loop in a thread."""

    def __init__(self, name: str, stream: RewardStream, reward: RewardSection) -> None:
        self.failure: BaseException | None = None
        self.judge: JudgeScorer | None = None
        self._name = name
        self._stream = stream
        self._reward = reward
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        setup = rules_setup(self._reward)
        try:
            scorer = build_scorer(setup, self._reward.judge)
            if isinstance(scorer, JudgeScorer):
                self.judge = scorer
            RewardWorkerLoop(self._stream.endpoint_workers, self._name, scorer, MAX_CREDITS).run()
        except BaseException as error:
            self.failure = error


class ScoreService:
    """Takes completions, gives verdicts in any order."""

    def __init__(self, stream: RewardStream, sender: CompletionSender, workers: list[_Worker]) -> None:
        self._stream = stream
        self._sender = sender
        self._workers = workers
        self._num_pending = 0

    def submit(self, request: GroupRequest, completion: Completion) -> None:
        """Has one completion scored: the only one of its group."""
        self._stream.expect([request])
        self._sender.send(completion)
        self._num_pending += 1

    def next(self) -> tuple[str, Verdict]:
        """(completion id, verdict) of one of those submitted. RewardError where a worker has failed."""
        while (scored := self._stream.next(CHECK_S)) is None:
            for worker in self._workers:
                if worker.failure is not None:
                    raise RewardError(f"{worker.thread.name} has failed: {worker.failure}") from worker.failure
        self._num_pending -= 1
        return scored.head.completion_id, scored.verdict

    def judge_reports(self) -> list[dict[str, Any]]:
        return [worker.judge.report() for worker in self._workers if worker.judge is not None]


@contextmanager
def open_service(reward: RewardSection, num_workers: int) -> Iterator[ScoreService]:
    """The service, on the loopback. Leaves no process behind."""
    stream = RewardStream()
    workers: list[_Worker] = []
    try:
        workers += [_Worker(f"reward worker {index}", stream, reward) for index in range(num_workers)]
        with CompletionSender(stream.endpoint_completions, "score", flush_timeout_s=FLUSH_S) as sender:
            yield ScoreService(stream, sender, workers)
    finally:
        stream.close()
        for worker in workers:
            worker.thread.join(JOIN_S)
