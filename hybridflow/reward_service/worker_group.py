"""The driver's view of the reward workers: starts them, and replaces those that die or stop while a run goes on."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from hybridflow.cluster.devices import DEVICE_ENVIRONMENT
from hybridflow.cluster.session import Slots
from hybridflow.config.reward_sections import RewardSection
from hybridflow.errors import HybridFlowError, RewardError
from hybridflow.observability.reporter import Reporter
from hybridflow.reward_service.sandbox.protocol import Setup
from hybridflow.reward_service.worker import RewardWorker
from hybridflow.wire.reward_stream import RewardStream

REWARD_SHARE = 0.2
"""Part of a slot's logical CPU for all reward workers together."""
START_TIMEOUT_S = 120.0
"""For a worker to be heard of; past it, or silent as long, it is taken for stopped and is replaced."""
MAX_RESTARTS = 5
RESTART_WINDOW_S = 120.0
"""More restarts of one worker within this time are an error: its death is no accident."""

_logger = logging.getLogger(__name__)


@dataclass
class _Running:
    """One worker process after the other under one id."""

    worker_id: str
    actor: Any
    pid_ref: Any
    run_ref: Any
    heard_at: float
    pid: int = 0


class RewardGroup:
    """`reward.num_workers` actors, each scoring in a process of its own.

        group = RewardGroup(config.reward, rules_setup(config.reward), stream, slots, logs, reporter)
        group.wait_ready()
        group.check()      # now and then, while a run goes on

    Args:
        setup: Code and limits of the scoring processes.
        slots: Placement; the workers share slot 0.
        reporter: Told which workers were lost and start again.
    """

    def __init__(
        self,
        section: RewardSection,
        setup: Setup,
        stream: RewardStream,
        slots: Slots,
        log_directory: Path,
        reporter: Reporter,
    ) -> None:
        self._section = section
        self._setup = setup
        self._stream = stream
        self._slots = slots
        self._log_directory = log_directory
        self._reporter = reporter
        self._restarts: dict[str, deque[float]] = {}
        self._running = [self._start(f"reward-{index}") for index in range(section.num_workers)]

    @property
    def actors(self) -> list[Any]:
        """Ray handles of the present processes."""
        return [running.actor for running in self._running]

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by worker id; 0 while one starts."""
        return {running.worker_id: running.pid for running in self._running}

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Returns when every worker was heard of. Raises RewardError, naming one, if it failed or is late."""
        deadline = time.monotonic() + timeout_s
        while missing := {running.worker_id for running in self._running} - set(self._stream.workers):
            for running in self._running:
                if (why := _how_it_ended(running)) is not None:
                    raise RewardError(f"{running.worker_id} failed to start: {why}. Its log is in logs/")
            if time.monotonic() > deadline:
                raise RewardError(
                    f"not heard of {', '.join(sorted(missing))} within {timeout_s:g} s; logs are in logs/"
                )
            time.sleep(0.05)
        for running in self._running:
            _learn_pid(running, timeout_s)

    def check(self) -> None:
        """Replaces each worker that has ended, or is silent for long; says so. Never waits for one.

        Raises:
            RewardError: a worker ends over and over again, or its verifiers cannot be loaded.
        """
        there = set(self._stream.workers)
        now = time.monotonic()
        for index, running in enumerate(self._running):
            why = _how_it_ended(running)
            if why is None:
                _learn_pid(running, 0.0)
                if running.worker_id in there:
                    running.heard_at = now
                elif now - running.heard_at > START_TIMEOUT_S:
                    why = f"was not heard of for {START_TIMEOUT_S:g} s: stopped, or cut off"
            if why is not None:
                self._running[index] = self._replace(running, why)

    def _replace(self, old: _Running, why: str) -> _Running:
        self._stream.worker_lost(old.worker_id)
        _kill(old.actor)
        what = f"{old.worker_id} (process {old.pid or 'unknown'}) {why}"
        restarts = self._restarts.setdefault(old.worker_id, deque(maxlen=MAX_RESTARTS))
        now = time.monotonic()
        if len(restarts) == MAX_RESTARTS and now - restarts[0] < RESTART_WINDOW_S:
            raise RewardError(
                f"{what}, after {MAX_RESTARTS} restarts within {RESTART_WINDOW_S:g} s. Its log is in logs/; "
                f"--resume continues from the last checkpoint"
            )
        restarts.append(now)
        self._reporter.note(f"{what}; its items go to the others, and it is started again")
        return self._start(old.worker_id)

    def _start(self, worker_id: str) -> _Running:
        actor: Any = (
            ray.remote(RewardWorker)
            .options(
                num_cpus=REWARD_SHARE / self._section.num_workers,
                scheduling_strategy=self._slots.strategy(0),
                runtime_env={"env_vars": DEVICE_ENVIRONMENT},
                max_concurrency=2,
                max_restarts=0,
            )
            .remote(
                self._stream.endpoint_workers,
                worker_id,
                self._section.credits,
                self._setup,
                str(self._log_directory / f"{worker_id}.log"),
                self._section.judge,
                os.environ.get(self._section.judge.api_key_env) if self._section.judge.endpoints else None,
            )
        )
        return _Running(worker_id, actor, actor.ping.remote(), actor.run.remote(), time.monotonic())


def _how_it_ended(running: _Running) -> str | None:
    """Tells how the process ended; None: it goes on. Raises the worker's own error where it gave one."""
    ready, _ = ray.wait([running.run_ref], timeout=0)
    if not ready:
        return None
    try:
        ray.get(running.run_ref)
    except RayTaskError as error:
        if isinstance(error.cause, HybridFlowError):
            raise error.cause from error
        return f"failed: {type(error.cause).__name__}: {error.cause}"
    except RayActorError as error:
        if "creation task" in str(error):
            return f"failed to start: {str(error).strip().splitlines()[-1]}"
        return "died: killed, or out of memory"
    return "ended before the run did"


def _learn_pid(running: _Running, timeout_s: float) -> None:
    if running.pid:
        return
    try:
        running.pid = ray.get(running.pid_ref, timeout=timeout_s)
    except GetTimeoutError:
        return  # it starts
    except RayActorError:
        _logger.info("%s ended before it gave its process id", running.worker_id)


def _kill(actor: Any) -> None:
    try:
        ray.kill(actor)
    except (RayError, ValueError) as error:
        _logger.info("a reward worker that is replaced was gone already: %s", error)
