"""The driver's view of the rollout engines."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray

from hybridflow.cluster.session import Slots
from hybridflow.cluster.workers import Call, Worker, are_ready, gather, identify
from hybridflow.config.sections import Config
from hybridflow.errors import RolloutError, WeightSyncError
from hybridflow.rollout.actor import RolloutWorker
from hybridflow.rollout.arguments import build_arguments, engine_environment
from hybridflow.types import GroupRequest, RolloutReport, SamplingParams
from hybridflow.weights.manifest import TensorEntry
from hybridflow.wire.endpoint import Endpoint

SLOT_SHARE = 0.4
"""Part of a slot that an engine takes beside the train worker of the slot."""
CONCURRENCY = 4
"""generate, abort, ping and one spare."""


class RolloutGroup:
    """One engine, for now; its worker answers `abort` while it decodes."""

    def __init__(self, config: Config, slots: Slots, hf_dir: Path, endpoint: Endpoint, log_directory: Path) -> None:
        """Starts the engine in slot 0; `wait_ready` waits for it."""
        arguments = build_arguments(config.rollout, dtype=config.model.dtype, seed=config.run.seed)
        actor = (
            ray.remote(RolloutWorker)
            .options(
                num_cpus=SLOT_SHARE,
                num_gpus=SLOT_SHARE * slots.gpus_per_slot,
                scheduling_strategy=slots.strategy(0),
                runtime_env={"env_vars": engine_environment(config.rollout)},
                max_restarts=0,
                max_concurrency=CONCURRENCY,
            )
            .remote("engine-0", str(hf_dir), arguments, config.run.seed, endpoint, str(log_directory / "rollout-0.log"))
        )
        self._worker = Worker("rollout worker 0", actor, RolloutError)
        self._start_timeout_s = config.rollout.start_timeout_s
        self._decoding: list[Call] = []
        self.child_pids: list[int] = []

    @property
    def workers(self) -> list[Worker]:
        return [self._worker]

    def wait_ready(self) -> None:
        """Returns when the engine answers.

        Raises RolloutError if it failed to start, or did not within `rollout.start_timeout_s`.
        """
        self._worker = identify(self._worker.name, self._worker.actor, RolloutError, self._start_timeout_s)
        (self.child_pids,) = gather([self._worker.call("child_pids")])

    def start(self, requests: list[GroupRequest], sampling: SamplingParams) -> None:
        """Starts decoding; completions go to the reward stream, each as soon as it ends."""
        self._decoding = [self._worker.call("generate", requests, sampling)]

    def poll(self) -> RolloutReport | None:
        """The report once every engine has ended, None before. Raises what an engine raised."""
        if not are_ready(self._decoding):
            return None
        return sum_reports(gather(self._decoding))

    def abort(self) -> None:
        gather([self._worker.call("abort")])

    def load_weights(self, buckets: Iterable[Any], version: int) -> list[TensorEntry]:
        """Hands bucket references to the engine as they come; returns what it confirmed for `version`.

        Two buckets are under way at most, so the next is made while the last is loaded.
        """
        gather([self._worker.call("begin_weights", version)])
        under_way: list[Call] = []
        for bucket in buckets:
            under_way.append(self._worker.call("load_bucket", bucket))
            if len(under_way) == 2:
                gather([under_way.pop(0)])
        gather(under_way)
        confirmed, entries = gather([self._worker.call("end_weights")])[0]
        if confirmed != version:
            raise WeightSyncError(f"{self._worker.name} confirms weights version {confirmed}, {version} was sent")
        return entries


def sum_reports(reports: list[RolloutReport]) -> RolloutReport:
    """Totals over engines."""
    return RolloutReport(
        num_completions=sum(r.num_completions for r in reports),
        prompt_tokens=sum(r.prompt_tokens for r in reports),
        cached_tokens=sum(r.cached_tokens for r in reports),
        response_tokens=sum(r.response_tokens for r in reports),
    )
