"""The driver's view of all train workers: one call here is the same call on every rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from hybridflow.cluster.session import Slots
from hybridflow.cluster.workers import RESUME, Call, gather, identify, stream
from hybridflow.config.sections import Config, OptimizerSection, WorkerSection
from hybridflow.errors import TrainerError
from hybridflow.trainer.actor import HEALTH, TrainWorker, worker_environment
from hybridflow.types import TrainBatch, UpdateReport
from hybridflow.weights.manifest import TensorEntry

SLOT_SHARE = 0.4
"""Part of a slot that a train worker takes; the rest is for the engine and reward workers beside it."""
BUCKET_BYTES = 256 * 2**20


@dataclass(frozen=True)
class PolicySettings:
    """How a policy is opened on its workers."""

    worker: WorkerSection
    dtype: str
    seed: int
    optimizer: OptimizerSection | None
    """None: it is read, not trained."""
    load_weights: bool = True
    """Otherwise a checkpoint follows."""
    after_death: str = RESUME
    """What the user is told to do when a worker died."""


class PolicyGroup:
    """Train workers, ranks 0 .. world_size - 1. Errors name the worker, see `cluster.workers.gather`."""

    def __init__(self, settings: PolicySettings, slots: Slots, log_directory: Path) -> None:
        """Creates the actors; `setup` makes them ready."""
        self._settings = settings
        num_threads = settings.worker.num_threads
        environment = {"env_vars": worker_environment(num_threads)}
        # The types that Ray declares for it leave concurrency groups out.
        remote = ray.remote(concurrency_groups={HEALTH: 1})(TrainWorker)  # pyright: ignore[reportCallIssue]
        logs = [log_directory / f"train-{rank}.log" for rank in range(settings.worker.layout.world_size)]
        actors = [
            remote.options(
                num_cpus=SLOT_SHARE,
                num_gpus=SLOT_SHARE * slots.gpus_per_slot,
                scheduling_strategy=slots.strategy(rank),
                runtime_env=environment,
                max_restarts=0,
            ).remote(rank, num_threads, str(log))
            for rank, log in enumerate(logs)
        ]
        self.workers = [
            identify(f"train worker {rank}", actor, TrainerError, log=str(log), remedy=settings.after_death)
            for rank, (actor, log) in enumerate(zip(actors, logs, strict=True))
        ]

    def setup(self, hf_dir: Path) -> list[Call]:
        """Starts loading the policy of `hf_dir` on every rank; wait for the calls with `gather`."""
        settings, section = self._settings, self._settings.worker
        (master,) = gather([self.workers[0].call("rendezvous")])
        arguments: dict[str, Any] = {
            "hf_dir": str(hf_dir),
            "dtype": settings.dtype,
            "layout": section.layout,
            "optimizer": settings.optimizer,
            "seed": settings.seed,
            "attention": section.attention,
            "fp32_head": section.fp32_head,
            "offload_activations": section.offload_activations,
            "load_weights": settings.load_weights,
        }
        return [worker.call("setup", master, **arguments) for worker in self.workers]

    def logprobs(self, batch: TrainBatch, temperature: float) -> list[list[float]]:
        """Per row of the batch, the logprob of each counted response token."""
        rows: dict[int, list[float]] = {}
        for part in gather(self._start("logprobs", ray.put(batch), temperature)):
            rows |= part
        return [rows[number] for number in range(len(batch.sequences))]

    def start_sft_step(self, batch: TrainBatch, learning_rate: float, per_sequence: bool = False) -> list[Call]:
        """Starts one supervised step; the next batch can be prepared meanwhile."""
        return self._start("sft_step", ray.put(batch), learning_rate, per_sequence)

    def finish_sft_step(self, handle: list[Call]) -> UpdateReport:
        return gather(handle)[0]

    def reset_optimizer(self) -> None:
        """Zero moments; the weights stay."""
        gather(self._start("reset_optimizer"))

    def save_checkpoint(self, directory: Path, background: bool = False) -> None:
        """With `background` the workers only copy their state; it is on the disk when `finish_checkpoint` returns."""
        gather(self._start("save_checkpoint", str(directory), background))

    def finish_checkpoint(self) -> None:
        gather(self._start("finish_checkpoint"))

    def load_checkpoint(self, directory: Path) -> None:
        gather(self._start("load_checkpoint", str(directory)))

    def save_hf(self, directory: Path) -> None:
        gather(self._start("save_hf", str(directory)))

    def stream_weights(self, version: int) -> Iterator[Any]:
        """References to weight buckets, as the ranks make them; every rank takes part, in rank order per stage."""
        streams = [stream(worker, "stream_weights", version, BUCKET_BYTES) for worker in self.workers]
        for references in streams:
            yield from references

    def published_manifest(self) -> list[TensorEntry]:
        """What all ranks together handed out in the last `stream_weights`."""
        return [entry for entries in gather(self._start("published_manifest")) for entry in entries]

    def _start(self, method: str, *args: Any) -> list[Call]:
        return [worker.call(method, *args) for worker in self.workers]


class TrainerGroup(PolicyGroup):
    """The workers of a whole run."""

    def __init__(self, config: Config, slots: Slots, log_directory: Path) -> None:
        super().__init__(
            PolicySettings(config.train, config.model.dtype, config.run.seed, config.train.optimizer),
            slots,
            log_directory,
        )
        self._config = config

    def update(self, batch: TrainBatch, learning_rate: float) -> UpdateReport:
        """Policy gradient steps on one batch."""
        options = {
            "algorithm": self._config.algorithm,
            "temperature": self._config.rollout.temperature,
            "num_updates": self._config.train.num_updates_per_step,
        }
        return gather(self._start("update", ray.put(batch), learning_rate, options))[0]
