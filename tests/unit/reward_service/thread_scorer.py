"""A scorer without a process of its own: verifiers of a test run in threads."""

from __future__ import annotations

import logging
import os
import queue
import threading

from hybridflow.reward_service.sandbox.protocol import Verify
from hybridflow.types import ScoreRequest, Unknown, Verdict

_logger = logging.getLogger(__name__)


class ThreadScorer:
    """Scores in threads of this process: for a `verify` that waits for others and keeps deadlines of its own.

    A `verify` that raises costs its item a verdict (Unknown). One that never returns holds its thread: whatever may
    compute for long belongs into a process.
    """

    def __init__(self, verify: Verify, num_threads: int = 1) -> None:
        self._verify = verify
        self._requests: queue.SimpleQueue[ScoreRequest | None] = queue.SimpleQueue()
        self._verdicts: queue.SimpleQueue[tuple[ScoreRequest, Verdict]] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._threads = [threading.Thread(target=self._run, name="score", daemon=True) for _ in range(num_threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, request: ScoreRequest) -> None:
        self._requests.put(request)

    def take_verdicts(self) -> list[tuple[ScoreRequest, Verdict]]:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return []
        verdicts = []
        while not self._verdicts.empty():
            verdicts.append(self._verdicts.get())
        return verdicts

    def descriptors(self) -> tuple[list[int], list[int]]:
        return [self._wake], []

    def close(self) -> None:
        """Threads that are still scoring end with their item. The descriptor stays open for them."""
        for _ in self._threads:
            self._requests.put(None)

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            self._verdicts.put((request, score_safely(self._verify, request)))
            os.eventfd_write(self._wake, 1)


def score_safely(verify: Verify, request: ScoreRequest) -> Verdict:
    """The verdict, or Unknown with the reason where `verify` raised."""
    try:
        return verify(request)
    except Exception as error:
        _logger.exception("the verifier raised on %s", request.completion_id)
        return Unknown(why=f"the verifier raised {type(error).__name__}: {error}")
