"""Ray shell of a train worker."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch

from hybridflow.algorithms.spec import ObjectiveSpec
from hybridflow.cluster.addresses import own_address, use_interface
from hybridflow.cluster.devices import DEVICE_ENVIRONMENT, show_own_instance, use_own_device
from hybridflow.observability.log import configure, redirect_output
from hybridflow.observability.span import LifeSign, enter, life_sign, stack_of_threads
from hybridflow.types import MeasuredRow, TrainBatch, UpdateReport, WorkerMemory
from hybridflow.weights.broadcast import Broadcast, BroadcastGroup
from hybridflow.weights.manifest import Bucket, TensorEntry
from hybridflow.weights.reshard.buffers import this_machine
from hybridflow.weights.reshard.settings import ReshardSettings
from hybridflow.weights.reshard.shard_bucket import ShardBucket
from hybridflow.weights.shared_buckets import BucketMemory, SharedBucket

if TYPE_CHECKING:
    from hybridflow.trainer.core import TrainerCore

HEALTH = "health"
"""Concurrency group of the methods that answer while the rank computes."""


def worker_environment(num_threads: int) -> dict[str, str]:
    """Environment of a train worker's process; must be set before Python starts there."""
    return DEVICE_ENVIRONMENT | {
        "OMP_NUM_THREADS": str(num_threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "PYTHONWARNINGS": "ignore",
    }


class TrainWorker:
    """One rank. Methods run one after the other, in the order called; `ping` answers beside them."""

    def __init__(self, rank: int, num_threads: int, log_path: str, network: str = "") -> None:
        redirect_output(Path(log_path))
        configure("train", rank=rank)
        torch.set_num_threads(num_threads)
        show_own_instance()
        self._rank = rank
        self._network = network
        self._core: TrainerCore | None = None
        self._bucket_memory = BucketMemory()

    @ray.method(concurrency_group=HEALTH)
    def ping(self) -> int:
        """Process id."""
        return os.getpid()

    @ray.method(concurrency_group=HEALTH)
    def life(self) -> LifeSign:
        """The span that this rank is in, also while it computes."""
        return life_sign(os.getpid())

    @ray.method(concurrency_group=HEALTH)
    def stack(self) -> str:
        """Where its threads are."""
        return stack_of_threads()

    def rendezvous(self) -> tuple[str, int]:
        """Address and free port of this worker's node, for rank 0 of a group."""
        address = own_address(self._network)
        return address, _free_port(address)

    def setup(self, master: tuple[str, int], **arguments: Any) -> str | None:
        """Joins the process group and loads the policy; arguments as in `TrainerCore`.

        Returns the UUID of this rank's GPU, None on a CPU. All methods that compute run in the thread of this one.
        """
        device = use_own_device()
        if master[1]:
            use_interface(own_address(self._network))
        # Here and not at the top: the driver imports this module too, and must not load Megatron.
        from hybridflow.trainer.core import TrainerCore

        self._core = TrainerCore(rank=self._rank, master_addr=master[0], master_port=master[1], **arguments)
        return device

    @property
    def core(self) -> TrainerCore:
        assert self._core is not None, "setup was not called"
        return self._core

    def logprobs(self, batch: TrainBatch) -> dict[int, list[float]]:
        return self.core.logprobs(batch)

    def check_objective(self, objective: ObjectiveSpec) -> None:
        self.core.check_objective(objective)

    def keep_reference(self, directory: str | None, verified: bool) -> None:
        enter("taking the reference's weights")
        self.core.keep_reference(None if directory is None else Path(directory), verified)

    def save_reference(self, directory: str) -> None:
        enter("writing the reference's weights")
        self.core.save_reference(Path(directory))

    def measure(self, batch: TrainBatch, columns: Sequence[str]) -> dict[int, MeasuredRow]:
        return self.core.measure(batch, columns)

    def update(
        self, batch: TrainBatch, learning_rate: float, objective: ObjectiveSpec, num_epochs: int
    ) -> list[UpdateReport]:
        return self.core.update(batch, learning_rate, objective, num_epochs)

    def stream_weights(self, version: int, bucket_bytes: int, shared: bool) -> Iterator[Bucket | SharedBucket]:
        buckets = self.core.iterate_weights(version, bucket_bytes)
        yield from self._bucket_memory.share(buckets) if shared else buckets

    def broadcast_weights(
        self, version: int, bucket_bytes: int, world_size: int, verified: bool
    ) -> Iterator[BroadcastGroup | Broadcast]:
        """See `TrainerCore.broadcast_weights`; the group, of `world_size` with this rank, is new each time."""
        address, port = self.rendezvous()
        group = BroadcastGroup(
            # The name is part of every key of the store in which its members meet.
            name=f"weights-{version}-from-{self._rank}-{secrets.token_hex(16)}",
            address=address,
            port=port,
            world_size=world_size,
            backend=self.core.topology.computes_on.backend,
        )
        yield from self.core.broadcast_weights(version, bucket_bytes, group, verified=verified)

    def machine(self) -> str:
        """Equal for workers that see each other's memory."""
        return this_machine()

    def open_reshard(self, settings: ReshardSettings) -> int:
        return self.core.open_reshard(settings)

    def assemble_shards(self, number: int, version: int) -> ShardBucket | None:
        enter(f"weights version {version}, round {number}")
        return self.core.assemble_shards(number, version)

    def published_manifest(self) -> list[TensorEntry]:
        self._bucket_memory.close()  # engines have loaded them
        return self.core.published_manifest()

    def to_host(self, *parts: str) -> int:
        enter(f"moving {parts} to the host")
        return self.core.to_host(*parts)  # pyright: ignore[reportArgumentType]

    def to_device(self, *parts: str) -> int:
        enter(f"moving {parts} to the device")
        return self.core.to_device(*parts)  # pyright: ignore[reportArgumentType]

    def memory(self) -> WorkerMemory:
        return self.core.memory()

    def reset_optimizer(self) -> None:
        self.core.reset_optimizer()

    def save_checkpoint(self, directory: str, background: bool = False) -> None:
        enter(f"saving {Path(directory).parent.name}")
        self.core.save_checkpoint(Path(directory), background)

    def finish_checkpoint(self) -> None:
        enter("finishing a checkpoint")
        self.core.finish_checkpoint()

    def load_checkpoint(self, directory: str) -> None:
        enter(f"loading {Path(directory).parent.name}")
        self.core.load_checkpoint(Path(directory))

    def save_hf(self, directory: str, dtype: str | None) -> None:
        enter("writing the model")
        self.core.save_hf(Path(directory), dtype)

    def close(self) -> None:
        self._bucket_memory.close()
        if self._core is not None:
            self._core.close()


def _free_port(address: str) -> int:
    """Below the range from which the system hands out ports, so that no one else's connection takes it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(15_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((address, port))
            return port
