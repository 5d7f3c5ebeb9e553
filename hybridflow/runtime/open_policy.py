"""Train workers for the time of one command."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray

from hybridflow.cluster.session import Slots, start_session
from hybridflow.environment import given_values
from hybridflow.runtime.teardown import tear_down
from hybridflow.trainer.group import PolicyGroup, PolicySettings

CLOSE_TIMEOUT_S = 10.0


@contextmanager
def open_policy(
    settings: PolicySettings, hf_dir: Path, log_directory: Path, environment: Mapping[str, str | bool] | None = None
) -> Iterator[PolicyGroup]:
    """The policy of `hf_dir` on its workers, the same Ray actors as in training. Leaves no process behind."""
    group: PolicyGroup | None = None
    try:
        start_session(settings.worker.layout.world_size, environment)
        settings = dataclasses.replace(settings, environment=given_values(environment or {}))
        group = PolicyGroup(settings, Slots(settings.worker.layout.world_size), log_directory)
        group.finish_setup(group.setup(hf_dir))
        yield group
        closing = [worker.actor.close.remote() for worker in group.workers]
        ray.wait(closing, num_returns=len(closing), timeout=CLOSE_TIMEOUT_S)
    finally:
        tear_down([worker.actor for worker in group.workers] if group else [])
