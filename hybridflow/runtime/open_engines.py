"""Rollout engines for the time of one command: no trainer, no reward workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybridflow.cluster.session import Slots, node_address, start_session
from hybridflow.observability.reporter import Reporter
from hybridflow.rollout.driver.engine_group import EngineGroup
from hybridflow.rollout.driver.opening import RolloutSettings
from hybridflow.runtime.teardown import tear_down
from hybridflow.types import Completion, GroupRequest, SamplingParams
from hybridflow.wire.completion_receiver import CompletionReceiver

POLL_S = 0.1
"""Longest time between two looks at the engines."""


class Engines:
    """Engines that are ready, with the weights of their model directory."""

    def __init__(self, group: EngineGroup, receiver: CompletionReceiver) -> None:
        self.group = group
        self._receiver = receiver

    def generate(self, requests: list[GroupRequest], sampling: SamplingParams) -> Iterator[Completion]:
        """Completions in the order in which they end; each exactly once, also if engines die meanwhile."""
        left = sum(request.num_completions for request in requests)
        self.group.start(requests, sampling)
        while left:
            completion = self._receiver.next(timeout_s=POLL_S)
            self.group.poll()
            if completion is not None:
                left -= 1
                yield completion


@contextmanager
def open_engines(settings: RolloutSettings, hf_dir: Path, log_directory: Path, reporter: Reporter) -> Iterator[Engines]:
    """The engines of a run, without the rest of it. Leaves no process behind."""
    group = EngineGroup(settings, reporter)
    receiver: CompletionReceiver | None = None
    try:
        start_session(settings.num_slots)
        receiver = CompletionReceiver(node_address(), group.admit)
        group.launch(Slots(settings.num_slots), hf_dir, receiver.endpoint_completions, log_directory)
        group.wait_ready()
        yield Engines(group, receiver)
    finally:
        tear_down(group.actors, group.pids, first=[receiver.close] if receiver else [])
