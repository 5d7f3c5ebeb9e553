"""The driver's view of all train workers: one call here is the same call on every rank."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ray

from hybridflow.algorithms.spec import ObjectiveSpec, supervised_spec
from hybridflow.cluster.devices import refuse_doubles
from hybridflow.cluster.session import Slots, private_folder
from hybridflow.cluster.workers import RESUME, Call, gather, identify
from hybridflow.config.sections import OptimizerSection, WorkerSection
from hybridflow.errors import TrainerError
from hybridflow.trainer.actor import HEALTH, TrainWorker, worker_environment
from hybridflow.trainer.kernels import refuse_float32, refuse_grouped_experts
from hybridflow.trainer.weight_streams import Broadcasts, ExactShards, HFBuckets
from hybridflow.types import MeasuredRow, TrainBatch, UpdateReport, WorkerMemory
from hybridflow.weights.manifest import TensorEntry
from hybridflow.weights.reshard.settings import ReshardSettings, ranks_per_machine

BROADCAST_ENVIRONMENT = {"NCCL_CUMEM_ENABLE": "0"}
"""SGLang's ranks have it so, and both ends of a group must allocate alike. Not run on a GPU yet."""
SLOT_SHARE = 0.4
"""Part of a slot that a train worker takes; the rest is for the engine and reward workers beside it."""


class WeightStream(Protocol):
    """One of `weight_streams`."""

    def begin(self, version: int) -> None: ...

    def next(self) -> Any | None: ...

    def end(self) -> list[TensorEntry]: ...


@dataclass(frozen=True)
class PolicySettings:
    """How a policy is opened on its workers."""

    worker: WorkerSection
    dtype: str
    seed: int
    optimizer: OptimizerSection | None
    """None: it is read, not trained."""
    network: str = ""
    """As in `cluster.network`."""
    force_float32: bool = True
    """Whether float32 is meant on GPUs too; a run says so by `model.force_float32`."""
    load_weights: bool = True
    """Otherwise a checkpoint follows."""
    routing_replay: bool = False
    """Its routers take the experts that rows bring along."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of its processes, above their own."""
    after_death: str = RESUME
    """Remedy that the user is told when a worker died."""


class PolicyGroup:
    """Train workers, ranks 0 .. world_size - 1. Errors name the worker, see `cluster.workers.gather`."""

    def __init__(self, settings: PolicySettings, slots: Slots, log_directory: Path) -> None:
        """Creates the actors; `setup` makes them ready."""
        refuse_float32(settings.dtype, forced=settings.force_float32, on_gpus=slots.gpus_per_slot > 0)
        refuse_grouped_experts(settings.worker, on_gpus=slots.gpus_per_slot > 0)
        self._settings = settings
        num_threads = settings.worker.num_threads
        environment = {"env_vars": worker_environment(num_threads) | dict(settings.environment)}
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
            ).remote(rank, num_threads, str(log), settings.network)
            for rank, log in enumerate(logs)
        ]
        self.workers = [
            identify(f"train worker {rank}", actor, TrainerError, log=str(log), remedy=settings.after_death)
            for rank, (actor, log) in enumerate(zip(actors, logs, strict=True))
        ]

    def setup(self, hf_dir: Path) -> list[Call]:
        """Starts loading the policy of `hf_dir` on every rank; wait for the calls with `finish_setup`."""
        settings, section = self._settings, self._settings.worker
        folder = private_folder()
        if folder is not None:
            master = (str(folder / f"train-{secrets.token_hex(8)}"), 0)
        else:
            (master,) = gather([self.workers[0].call("rendezvous")])
        arguments: dict[str, Any] = {
            "hf_dir": str(hf_dir),
            "dtype": settings.dtype,
            "layout": section.layout,
            "optimizer": settings.optimizer,
            "seed": settings.seed,
            "token": secrets.token_hex(32),
            "kernels": section.kernels,
            "attention": section.attention,
            "fp32_head": section.fp32_head,
            "offload_activations": section.offload_activations,
            "load_weights": settings.load_weights,
            "routing_replay": settings.routing_replay,
        }
        return [worker.call("setup", master, **arguments) for worker in self.workers]

    def finish_setup(self, calls: list[Call]) -> None:
        """Returns when every rank is ready. Raises PlacementError where two are on one GPU."""
        refuse_doubles([worker.name for worker in self.workers], gather(calls))

    def logprobs(self, batch: TrainBatch) -> list[list[float]]:
        """Per row of the batch, the logprob of each counted response token."""
        rows: dict[int, list[float]] = {}
        for part in gather(self._start("logprobs", ray.put(batch))):
            rows |= part
        return [rows[number] for number in range(len(batch.sequences))]

    def start_sft_step(self, batch: TrainBatch, learning_rate: float, per_sequence: bool = False) -> list[Call]:
        """Starts one supervised step; the next batch can be prepared meanwhile.

        With `per_sequence` the report counts sequences as tokens.
        """
        objective = supervised_spec("sequence_mean" if per_sequence else "token_mean")
        return self._start_update(batch, learning_rate, objective, num_epochs=1)

    def finish_sft_step(self, handle: list[Call]) -> UpdateReport:
        (report,) = gather(handle)[0]
        return report

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
        """Weights in `export_dtype` of the workers' section."""
        asked = self._settings.worker.export_dtype
        gather(self._start("save_hf", str(directory), None if asked == "model" else asked))

    def _start_update(
        self, batch: TrainBatch, learning_rate: float, objective: ObjectiveSpec, num_epochs: int
    ) -> list[Call]:
        return self._start("update", ray.put(batch), learning_rate, objective, num_epochs)

    def _start(self, method: str, *args: Any) -> list[Call]:
        return [worker.call(method, *args) for worker in self.workers]


class TrainerGroup(PolicyGroup):
    """The workers of a whole run."""

    def __init__(
        self,
        settings: PolicySettings,
        slots: Slots,
        log_directory: Path,
        *,
        objective: ObjectiveSpec,
        num_epochs: int,
        bucket_bytes: int,
    ) -> None:
        """`objective` and `num_epochs` are what `update` does; `bucket_bytes` the size of a piece of the weights."""
        super().__init__(settings, slots, log_directory)
        self._objective = objective
        self._num_epochs = num_epochs
        self._bucket_bytes = bucket_bytes
        self.use_whole_tensors(self._bucket_bytes, shared=slots.on_one_node)

    def finish_setup(self, calls: list[Call]) -> None:
        """Adds ConfigError where a worker cannot build the objective."""
        super().finish_setup(calls)
        gather(self._start("check_objective", self._objective))

    def use_whole_tensors(self, bucket_bytes: int, *, shared: bool) -> None:
        """From now on engines are handed whole tensors, in memory that is `shared` where all are on one node."""
        self._weights: WeightStream = HFBuckets(self.workers, bucket_bytes, shared=shared)

    def use_exact_shards(self, settings: ReshardSettings) -> None:
        """From now on engines are handed shards, cut for their ranks. To be called after `setup`."""
        machines = gather(self._start("machine"))
        settings = dataclasses.replace(settings, gpus_per_node=ranks_per_machine(machines))
        num_rounds = gather(self._start("open_reshard", settings))[0]
        self._weights = ExactShards(self.workers, num_rounds)

    def use_broadcasts(self, num_receivers: Callable[[], int], *, verified: bool) -> None:
        """From now on engines are told of whole tensors that are sent to so many of their ranks.

        `verified`: with the checksums that engines are asked for.
        """
        self._weights = Broadcasts(
            self.workers,
            self._bucket_bytes,
            num_stages=self._settings.worker.layout.pp,
            num_receivers=num_receivers,
            verified=verified,
        )

    def begin_weights(self, version: int) -> None:
        """The present weights are handed out next, as this version."""
        self._weights.begin(version)

    def next_weights(self) -> Any | None:
        """The next round of them, made once the last but one is loaded; None after the last."""
        return self._weights.next()

    def end_weights(self) -> list[TensorEntry]:
        """All rounds have been loaded: what was handed out since `begin_weights`."""
        return self._weights.end()

    def to_host(self, *parts: str) -> int:
        """Frees the device memory of these parts on every rank; returns the bytes."""
        return sum(gather(self._start("to_host", *parts)))

    def to_device(self, *parts: str) -> int:
        """Brings them back; returns the bytes taken."""
        return sum(gather(self._start("to_device", *parts)))

    def memory(self) -> list[WorkerMemory]:
        """Each rank's device, and what it holds there."""
        return gather(self._start("memory"))

    def keep_reference(self, directory: Path | None, verified: bool = False) -> None:
        """Every rank takes its part of the reference from this folder, or from the present weights."""
        gather(self._start("keep_reference", None if directory is None else str(directory), verified))

    def save_reference(self, directory: Path) -> None:
        gather(self._start("save_reference", str(directory)))

    def measure(self, batch: TrainBatch, columns: Sequence[str]) -> list[MeasuredRow]:
        """Per row of the batch, in order: the columns, a value for each counted token."""
        rows: dict[int, MeasuredRow] = {}
        for part in gather(self._start("measure", ray.put(batch), list(columns))):
            rows |= part
        return [rows[number] for number in range(len(batch.sequences))]

    def update(self, batch: TrainBatch, learning_rate: float) -> list[UpdateReport]:
        """Optimizer steps on one batch; a report of each."""
        return gather(self._start_update(batch, learning_rate, self._objective, self._num_epochs))[0]
