"""Train workers for the time of one command."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray

from hybridflow.cluster.life_signs import RayLife, WorkerLife
from hybridflow.cluster.session import Slots, own_processes, start_session
from hybridflow.cluster.watchdog import Watchdog
from hybridflow.environment import given_values
from hybridflow.runtime.teardown import tear_down
from hybridflow.trainer.group import PolicyGroup, PolicySettings

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 10.0


@contextmanager
def open_policy(
    settings: PolicySettings,
    hf_dir: Path,
    log_directory: Path,
    environment: Mapping[str, str | bool] | None = None,
    watchdog: Watchdog | None = None,
) -> Iterator[PolicyGroup]:
    """The policy of `hf_dir` on its workers, the same Ray actors as in training. Leaves no process behind.

    The watchdog looks at Ray's processes and the workers; without one of the caller's, nothing has a deadline and only
    what is gone ends the command.
    """
    group: PolicyGroup | None = None
    watchdog = watchdog or Watchdog({}, logger.warning, log_directory / "stacks.log")
    try:
        with watchdog.raising():
            start_session(settings.worker.layout.world_size, environment)
            watchdog.watch(RayLife(own_processes()))
            watchdog.start()
            settings = dataclasses.replace(settings, environment=given_values(environment or {}))
            group = PolicyGroup(settings, Slots(settings.worker.layout.world_size), log_directory)
            group.finish_setup(group.setup(hf_dir))
            watchdog.watch(WorkerLife(group.workers))
            yield group
        watchdog.close()
        closing = [worker.actor.close.remote() for worker in group.workers]
        ray.wait(closing, num_returns=len(closing), timeout=CLOSE_TIMEOUT_S)
    finally:
        tear_down([worker.actor for worker in group.workers] if group else [], first=[watchdog.close])
