"""Builds the parts of a run and takes them down: the only place that chooses and joins concrete ones."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Any

from hybridflow.algorithms.spec import algorithm_spec
from hybridflow.cluster.life_signs import ProcessLife, RayLife, WorkerLife
from hybridflow.cluster.session import Slots, node_address, own_processes, start_session
from hybridflow.cluster.watchdog import Watchdog
from hybridflow.config.phases import smallest_top_p
from hybridflow.config.sections import Config
from hybridflow.environment import given_values
from hybridflow.observability.reporter import Reporter
from hybridflow.recording.timeline import Timeline
from hybridflow.reward_service.sandbox.protocol import rules_setup
from hybridflow.reward_service.worker_group import RewardGroup
from hybridflow.rollout.driver.engine_group import EngineGroup, RolloutLife
from hybridflow.rollout.driver.opening import RolloutSettings
from hybridflow.rollout.engine.arguments import releases_memory
from hybridflow.runtime.open_order import open_in_order
from hybridflow.runtime.teardown import tear_down
from hybridflow.runtime.transport import Transport, choose_transport, num_slots, refuse_small_stores
from hybridflow.trainer.group import BROADCAST_ENVIRONMENT, PolicySettings, TrainerGroup
from hybridflow.wire.messages import Finished
from hybridflow.wire.reward_stream import RewardStream


def start_train_workers(config: Config, slots: Slots, log_directory: Path, *, broadcasts: bool = False) -> TrainerGroup:
    """Creates the actors; `setup` makes them ready. `broadcasts`: they will send whole tensors to engines."""
    settings = PolicySettings(
        config.train,
        config.model.dtype,
        config.run.seed,
        config.train.optimizer,
        config.cluster.network,
        force_float32=config.model.force_float32,
        routing_replay=config.algorithm.routing_replay == "engine",
        environment=(BROADCAST_ENVIRONMENT if broadcasts else {}) | given_values(config.cluster.environment),
    )
    return TrainerGroup(
        settings,
        slots,
        log_directory,
        objective=algorithm_spec(config).objective,
        num_epochs=config.train.num_updates_per_step,
        bucket_bytes=int(config.rollout.weight_bucket_mib * 2**20),
    )


logger = logging.getLogger(__name__)


class System:
    """All running parts. Used as a context manager: whatever happens inside, no process is left behind."""

    def __init__(
        self,
        config: Config,
        hf_dir: Path,
        log_directory: Path,
        reporter: Reporter,
    ) -> None:
        """Starts Ray, the reward stream and every actor, and waits until each is ready.

        Tells `reporter` what it waits for and what a user must know.
        """
        self._actors: list[Any] = []
        self._stream: RewardStream | None = None
        self._rewards: RewardGroup | None = None
        self._transport: Transport | None = None
        self.timeline = Timeline()
        self.watchdog = Watchdog(config.cluster.stall.limits(), reporter.note, log_directory / "stacks.log")
        settings = RolloutSettings(
            config.rollout.model_copy(update={"top_p": smallest_top_p(config)}),
            config.model.dtype,
            config.run.seed,
            tells_experts=config.algorithm.routing_replay == "engine",
            environment=given_values(config.cluster.environment),
        )
        self.rollout = EngineGroup(settings, reporter)
        # Processes must not be lost between their start and the first line that could end them.
        try:
            with self.watchdog.raising():
                self._start(config, hf_dir, log_directory, reporter)
        except BaseException:
            self.close()
            raise

    def _start(self, config: Config, hf_dir: Path, log_directory: Path, reporter: Reporter) -> None:
        layout, engines = config.train.layout, config.rollout
        reporter.note("starting Ray (usually 5 s)")
        start_session(num_slots(config), config.cluster.environment)
        self.watchdog.watch(RayLife(own_processes()))
        self.watchdog.start()
        slots = Slots(num_slots(config))
        self.has_cuda = slots.has_cuda
        transport = self._transport = choose_transport(config, hf_dir, slots.nodes(), slots.has_cuda)
        if transport.name == "hf_buckets":
            refuse_small_stores(config, hf_dir, slots.places)
        stream = self._stream = RewardStream(
            node_address(config.cluster.network),
            self._admit,
            lease_s=config.reward.lease_s,
            num_unknown_retries=config.reward.unknown_retries,
            max_pending_bytes=int(config.reward.max_pending_mib * 2**20),
        )
        reporter.note(
            f"starting {engines.num_engines} SGLang engines (TP {engines.tp_size}), and {layout.world_size} Megatron "
            f"workers (TP {layout.tp} x PP {layout.pp} x DP {layout.dp}; usually 30 to 60 s on a CPU)"
        )
        self.rollout.launch(slots, hf_dir, stream.endpoint_completions, log_directory, transport.placed)
        self.released = open_in_order(
            self.rollout,
            lambda: self._open_trainer(config, hf_dir, log_directory, slots, reporter),
            shared=slots.has_cuda and releases_memory(engines, slots.has_cuda),
        )
        assert self._rewards is not None
        self._rewards.wait_ready()
        self.watchdog.watch(WorkerLife(self.trainer.workers))
        self.watchdog.watch(RolloutLife(self.rollout))
        self.watchdog.watch(ProcessLife(lambda: self._rewards.pids if self._rewards else {}))
        reporter.note("all workers are ready")

    def _open_trainer(
        self, config: Config, hf_dir: Path, log_directory: Path, slots: Slots, reporter: Reporter
    ) -> None:
        """Starts train and reward workers, and waits for the former."""
        transport = self.transport
        self.trainer = start_train_workers(config, slots, log_directory, broadcasts=transport.broadcasts)
        self._actors += [worker.actor for worker in self.trainer.workers]
        setup = rules_setup(config.reward)
        self._rewards = RewardGroup(config.reward, setup, self.stream, slots, log_directory, reporter)
        self.trainer.finish_setup(self.trainer.setup(hf_dir))
        if transport.exact is not None:
            self.trainer.use_exact_shards(transport.exact)
        elif transport.broadcasts:
            verified = config.rollout.verify_weights != "none"
            self.trainer.use_broadcasts(self.rollout.num_receivers, verified=verified)
        elif config.rollout.weight_transport == "auto":
            reporter.note(f"weights go to the engines as whole tensors (hf_buckets): {transport.reason}")

    @property
    def stream(self) -> RewardStream:
        assert self._stream is not None
        return self._stream

    @property
    def transport(self) -> Transport:
        """How weights travel in this run."""
        assert self._transport is not None
        return self._transport

    def _admit(self, message: Finished) -> bool:
        """Called from the stream's thread for each completion that arrives."""
        self.timeline.mark("completion")
        self.watchdog.moved()
        return self.rollout.admit(message)

    def check_workers(self) -> None:
        """Replaces reward workers that have ended although the run goes on; raises where that does not help."""
        assert self._rewards is not None
        self._rewards.check()

    def close(self) -> None:
        """Ends every process that this run started, within seconds, whatever state they are in.

        A second Ctrl-C or SIGTERM does not cut this short.
        """
        rewards = self._rewards.actors if self._rewards else []
        streams = [self._stream.close] if self._stream else []
        actors = [*self._actors, *self.rollout.actors, *rewards]
        tear_down(actors, self.rollout.pids, first=[self.watchdog.close, *streams])

    def __enter__(self) -> System:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
