"""Ray shell of a reward worker. The code that builds the system applies `ray.remote`; nothing here imports Ray."""

from __future__ import annotations

import os
from pathlib import Path

from hybridflow.config.judge_section import JudgeSection
from hybridflow.observability.log import configure
from hybridflow.observability.process_log import redirect_output
from hybridflow.reward_service.judge.scorer import build_scorer
from hybridflow.reward_service.sandbox.protocol import Setup
from hybridflow.reward_service.worker import RewardWorkerLoop
from hybridflow.wire.endpoint import Endpoint


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
