"""Ray shell of a reward worker. The code that builds the system applies `ray.remote`; nothing here imports Ray."""

from __future__ import annotations

import os
from pathlib import Path

from hybridflow.config.sections import RewardsSection
from hybridflow.observability.log import configure
from hybridflow.observability.process_log import redirect_output
from hybridflow.reward_service.worker import RewardWorkerLoop
from hybridflow.rewards.registry import Registry


class RewardWorker:
    """One reward worker process that scores by rule.

    `run` occupies its thread until the stream closes: create the actor with max_concurrency=2, or `ping` must wait.

        ray.remote(RewardWorker).options(num_cpus=0, max_concurrency=2).remote(endpoint, "reward-0", credits=8)
    """

    def __init__(
        self,
        endpoint: str,
        worker_id: str,
        credits: int,
        log_path: str | None = None,
        rewards: RewardsSection | None = None,
    ) -> None:
        if log_path is not None:
            redirect_output(Path(log_path))
            configure("reward")
        registry = Registry(rewards or RewardsSection())
        self._loop = RewardWorkerLoop(endpoint, worker_id, registry.verify, credits)

    def run(self) -> int:
        """Scores until the stream stops it; returns the number of items scored."""
        return self._loop.run()

    def ping(self) -> int:
        """Process id, for the supervisor."""
        return os.getpid()
