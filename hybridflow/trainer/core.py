"""One train worker, without Ray. Every public method is collective: all ranks of the layout call it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from hybridflow.algorithms.objective import build_objective
from hybridflow.algorithms.spec import ObjectiveSpec
from hybridflow.cluster.devices import device_name, free_bytes
from hybridflow.config.sections import LayoutSection, OptimizerSection
from hybridflow.errors import CheckpointError, ConfigError
from hybridflow.trainer.batch import pack_rank
from hybridflow.trainer.layout import to_layout
from hybridflow.trainer.measuring import measure_rows
from hybridflow.trainer.policy_update import update_policy
from hybridflow.types import MeasuredRow, TrainBatch, UpdateReport, WorkerMemory
from hybridflow.weights.broadcast import Broadcast, Broadcaster, BroadcastGroup, read_back_checksum
from hybridflow.weights.manifest import Bucket, TensorEntry, iterate_buckets
from hybridflow.weights.reshard.executor import ReshardExecutor
from hybridflow.weights.reshard.settings import ReshardSettings
from hybridflow.weights.reshard.shard_bucket import ShardBucket
from megatron_ext.checkpoint.commit import BrokenCheckpointError
from megatron_ext.checkpoint.dist_checkpoint import verify_folder
from megatron_ext.checkpoint.identity import WrongModelError
from megatron_ext.hf.files import WeightsError
from megatron_ext.kernels.choice import AttentionBackend, KernelChoice
from megatron_ext.optimizer.optimizer import OptimizerOptions
from megatron_ext.optimizer.residency import PARTS, Part
from megatron_ext.parallel.topology import Topology, init_distributed, shutdown_distributed
from megatron_ext.policy import MegatronPolicy

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def check_objective(objective: ObjectiveSpec, worker: str) -> None:
    """Builds it, as each update does. Raises ConfigError, naming the worker, for a part that cannot be built here: a
    function of the user's own may be on other nodes alone.
    """
    try:
        build_objective(objective)
    except ConfigError as error:
        raise ConfigError(f"{worker} cannot build the objective: {error}") from error


class TrainerCore:
    """The policy of this rank and the updates on it."""

    def __init__(
        self,
        *,
        hf_dir: str,
        dtype: str,
        layout: LayoutSection,
        optimizer: OptimizerSection | None,
        rank: int,
        master_addr: str,
        master_port: int,
        seed: int,
        token: str = "",
        kernels: KernelChoice = "auto",
        attention: AttentionBackend = "auto",
        fp32_head: bool = False,
        offload_activations: bool = False,
        load_weights: bool = True,
        routing_replay: bool = False,
    ) -> None:
        """Without `optimizer` the policy can be read and exported; `load_weights=False` expects a checkpoint."""
        self._options = None
        if optimizer is not None:
            self._options = OptimizerOptions(
                betas=(optimizer.beta1, optimizer.beta2),
                eps=optimizer.eps,
                weight_decay=optimizer.weight_decay,
                clip_grad=optimizer.clip_grad,
            )
        shape = to_layout(layout)
        self.topology: Topology = init_distributed(
            rank, shape.world_size, master_addr, master_port, shape, seed, token=token
        )
        self._policy = MegatronPolicy(
            hf_dir,
            shape,
            self.topology,
            dtype=DTYPES[dtype],
            optimizer=self._options,
            kernels=kernels,
            attention=attention,
            load_weights=load_weights,
            fp32_head=fp32_head,
            activation_offload=offload_activations,
            routing_replay=routing_replay,
        )
        logger.info("computes with %s", self._policy.describe_kernels())
        self._published: list[TensorEntry] = []
        self._reshard: ReshardExecutor | None = None

    @property
    def sends_weights(self) -> bool:
        """One rank of each pipeline stage hands its stage's tensors out."""
        return self.topology.tp_rank == 0 and self.topology.replica_rank == 0

    def logprobs(self, batch: TrainBatch) -> dict[int, list[float]]:
        """Row number -> logprob of each counted response token, for this rank's rows; empty but on the last stage."""
        (mini_batch,) = batch.plan
        plan = mini_batch[self.topology.dp_rank]
        outputs = self._policy.logprobs(pack_rank(batch, self.topology.dp_rank), temperature=batch.temperature)
        rows: dict[int, list[float]] = {}
        for numbers, (logprobs_N, _) in zip(plan, outputs or [], strict=False):
            counts = [sum(batch.sequences[number].loss_mask) for number in numbers]
            pieces = logprobs_N.split(counts) if counts else []
            rows |= {number: piece.tolist() for number, piece in zip(numbers, pieces, strict=True)}
        return rows

    def check_objective(self, objective: ObjectiveSpec) -> None:
        """See `check_objective`."""
        check_objective(objective, f"train worker {self.topology.rank}")

    def keep_reference(self, directory: Path | None, verified: bool = False) -> None:
        """The weights in a Hugging Face folder, or the present ones, are the reference from now on.

        `verified`: the folder has a manifest, by which all of it is checked. CheckpointError for one that is damaged.
        """
        try:
            if directory is not None and verified:
                verify_folder(directory, self.topology)
            self._policy.keep_reference(directory)
        except (BrokenCheckpointError, WeightsError) as error:
            raise CheckpointError(str(error)) from error

    def save_reference(self, directory: Path) -> None:
        """Its weights as a Hugging Face folder, in the dtype of training, so that they come back bit for bit."""
        with self._policy.as_reference():
            self._policy.save_hf(directory, self._policy.dtype)

    def measure(self, batch: TrainBatch, columns: Sequence[str]) -> dict[int, MeasuredRow]:
        """Numbers of this rank's rows before the update, see `measuring.measure_rows`."""
        return measure_rows(self._policy, batch, columns)

    def update(
        self, batch: TrainBatch, learning_rate: float, objective: ObjectiveSpec, num_epochs: int = 1
    ) -> list[UpdateReport]:
        """Optimizer steps on `batch`, see `policy_update.update_policy`."""
        return update_policy(self._policy, batch, learning_rate, objective=objective, num_epochs=num_epochs)

    def iterate_weights(self, version: int, bucket_bytes: int) -> Iterator[Bucket]:
        """This stage's tensors under HF names, by buckets; the peers of the sender iterate too and yield nothing."""
        tensors = self._policy.export_tensors()
        self._published = []
        if not self.sends_weights:
            for _ in tensors:
                pass
            return
        source = f"train worker {self.topology.rank}"
        for bucket in iterate_buckets(tensors, version=version, source=source, bucket_bytes=bucket_bytes):
            self._published.extend(bucket.entries)
            yield bucket

    def broadcast_weights(
        self, version: int, bucket_bytes: int, group: BroadcastGroup, *, verified: bool
    ) -> Iterator[BroadcastGroup | Broadcast]:
        """This stage's tensors to the members of `group`; yields it, then each bucket before it is sent.

        Blocks until all members have joined, and then until each bucket is with them. The peers of the sender iterate
        too and yield nothing.
        """
        sender: Broadcaster | None = None
        if self.sends_weights:
            yield group
            sender = Broadcaster(group)
        for bucket in self.iterate_weights(version, bucket_bytes):
            assert sender is not None, "a rank that does not send has no buckets"
            # SGLang's checksum on a GPU is another one.
            pairs = zip(bucket.entries, bucket.tensors, strict=True) if verified and group.backend == "gloo" else ()
            read_back = {entry.name: read_back_checksum(tensor) for entry, tensor in pairs}
            yield Broadcast(version=version, group=group.name, entries=bucket.entries, read_back=read_back)
            sender.send(tensor.to(self.topology.device) for tensor in bucket.tensors)
        if sender is not None:
            sender.close()

    def open_reshard(self, settings: ReshardSettings) -> int:
        """Plans exact resharding to the engines that `settings` names; returns the number of its rounds."""
        dtype = self._policy.dtype
        schedule = settings.schedule(self._policy.hf_config, self._policy.layout, dtype.itemsize)
        self._reshard = ReshardExecutor(schedule, self.topology.rank, dtype, self.topology.device, settings.verify)
        return self._reshard.num_rounds

    def assemble_shards(self, number: int, version: int) -> ShardBucket | None:
        """One round of it, see `ReshardExecutor.assemble`."""
        assert self._reshard is not None, "open_reshard was not called"
        return self._reshard.assemble(number, version, self._policy.local_parameters())

    def published_manifest(self) -> list[TensorEntry]:
        """Entries of the tensors that this rank handed out last."""
        return self._published

    def to_host(self, *parts: Part) -> int:
        """Frees this rank's device memory of these parts; returns the bytes."""
        return self._policy.to_host(*parts).freed_bytes

    def to_device(self, *parts: Part) -> int:
        """Brings them back; returns the bytes taken. What is there already stays."""
        return -self._policy.to_device(*parts).freed_bytes

    def memory(self) -> WorkerMemory:
        """This rank's device, and which parts are there."""
        residency = self._policy.training.residency
        sizes: dict[Part, int] = {part: residency.num_bytes(part) for part in PARTS}
        return WorkerMemory(
            worker=f"train worker {self.topology.rank}",
            device=device_name(self.topology.device),
            free_bytes=free_bytes(self.topology.device),
            on_device={str(part): size for part, size in sizes.items() if residency.is_on_device(part)},
            on_host={str(part): size for part, size in sizes.items() if not residency.is_on_device(part)},
        )

    def reset_optimizer(self) -> None:
        assert self._options is not None, "the policy was opened without an optimizer"
        self._policy.reset_optimizer(self._options)

    def save_checkpoint(self, directory: Path, background: bool = False) -> None:
        """Complete on return, or, in the background, when `finish_checkpoint` returns."""
        self._policy.save_checkpoint(directory, background=background)

    def finish_checkpoint(self) -> None:
        self._policy.finish_checkpoint()

    def load_checkpoint(self, directory: Path) -> None:
        """Raises CheckpointError, before anything changes, for one that is damaged or of another model."""
        try:
            self._policy.load_checkpoint(directory)
        except (BrokenCheckpointError, WrongModelError) as error:
            raise CheckpointError(str(error)) from error

    def save_hf(self, directory: Path, dtype: str | None = None) -> None:
        """Weights in `dtype`; without it in that of the model that was opened."""
        self._policy.save_hf(directory, DTYPES[dtype] if dtype else None)

    def close(self) -> None:
        if self._reshard is not None:
            self._reshard.close()
        self._policy.close()
        shutdown_distributed()
