"""A reward worker: takes work, has it scored, replies, and says all the time what it holds; and its Ray shell.

The code that builds the system applies `ray.remote`; nothing here imports Ray.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from hybridflow.config.judge_section import JudgeSection
from hybridflow.errors import RewardError
from hybridflow.observability.log import configure, redirect_output
from hybridflow.reward_service.judge.scorer import Scorer, build_scorer
from hybridflow.reward_service.sandbox.protocol import Setup
from hybridflow.wire.endpoint import Endpoint
from hybridflow.wire.messages import MAX_CREDITS, Stop
from hybridflow.wire.worker_channel import WorkerChannel

ANNOUNCE_INTERVAL_S = 1.0
"""The worker says that it is there, and which items it holds, this often."""
TICK_S = 0.1
"""Longest wait for anything; within this time the scorer looks at its deadlines."""


class RewardWorkerLoop:
    """Scores what the stream hands out until it is told to stop.

    This thread never runs a verifier: it goes on speaking to the stream whatever one does. So a worker that is silent
    is dead, stopped or cut off, and the stream gives its items to others.

    Args:
        endpoint: `RewardStream.endpoint_workers`.
        worker_id: Unique among live workers; a restarted worker may take over the id of the dead one.
        scorer: Gives the verdicts; closed by `run`.
        credits: Unanswered items that this worker holds at most, 1 to MAX_CREDITS; 2 or more hide the round trip.
    """

    def __init__(self, endpoint: Endpoint, worker_id: str, scorer: Scorer, credits: int) -> None:
        if not 1 <= credits <= MAX_CREDITS:
            raise RewardError(f"credits of {worker_id} are {credits}, must be 1 to {MAX_CREDITS}")
        self._endpoint = endpoint
        self._worker_id = worker_id
        self._scorer = scorer
        self._credits = credits

    def run(self) -> int:
        """Consumes Work, waits for it, is unblocked by Stop, produces one ScoreReply each; returns how many it scored.

        Raises:
            ProtocolError: the stream sent what this version does not understand; this worker leaves first.
            RewardError: the scorer cannot go on.
        """
        channel = WorkerChannel(self._endpoint, self._worker_id, self._credits)
        holding: dict[str, None] = {}
        num_scored = 0
        announce_at = 0.0
        try:
            while True:
                now = time.monotonic()
                if now >= announce_at:
                    channel.announce(holding)
                    announce_at = now + ANNOUNCE_INTERVAL_S
                channel.wait(min(TICK_S, max(0.0, announce_at - now)), *self._scorer.descriptors())
                for message in channel.receive():
                    if isinstance(message, Stop):
                        return num_scored
                    # An item comes twice where the stream took its lease away and gave it back.
                    if message.completion_id not in holding:
                        holding[message.completion_id] = None
                        self._scorer.submit(message.request)
                for request, verdict in self._scorer.take_verdicts():
                    del holding[request.completion_id]
                    channel.reply(request.completion_id, verdict)
                    num_scored += 1
                channel.flush()
        finally:
            channel.leave()
            self._scorer.close()
            channel.close()


class RewardWorker:
    """One reward worker, the killable process that it scores in, and the judge that it asks after the rules.

    `run` occupies its thread until the stream closes: create the actor with max_concurrency=2, or `ping` must wait.

        ray.remote(RewardWorker).options(num_cpus=0, max_concurrency=2).remote(endpoint, "reward-0", 8, setup)
    """

    def __init__(
        self,
        endpoint: Endpoint,
        worker_id: str,
        credits: int,
        setup: Setup,
        log_path: str | None = None,
        judge: JudgeSection | None = None,
        judge_key: str | None = None,
    ) -> None:
        """`judge_key` goes to the judge, and into this process's environment alone: a verifier does not see it."""
        if log_path is not None:
            redirect_output(Path(log_path))
            configure("reward")
        if judge is not None and judge_key is not None:
            os.environ[judge.api_key_env] = judge_key
        self._arguments = (endpoint, worker_id, credits, setup, judge)

    def run(self) -> int:
        """Scores until the stream stops it; returns the number of items scored."""
        endpoint, worker_id, credits, setup, judge = self._arguments
        # Here and not above: the scoring process ends with the thread that started it.
        return RewardWorkerLoop(endpoint, worker_id, build_scorer(setup, judge), credits).run()

    def ping(self) -> int:
        """Process id, for the supervisor."""
        return os.getpid()
