"""Ray shell of a rollout engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from hybridflow.cluster.devices import VISIBLE
from hybridflow.cluster.gpu_reservations import devices_of
from hybridflow.observability.log import configure, redirect_output
from hybridflow.private_folder import PrivateFolder
from hybridflow.rollout.cpu.process_server import start_server
from hybridflow.rollout.engine.arguments import leave_allocator_alone
from hybridflow.rollout.engine.memory import reported_bytes
from hybridflow.rollout.engine.private_ranks import keep_private
from hybridflow.rollout.engine.sglang_engine import EngineFacts, EngineStatus, SGLangEngine
from hybridflow.rollout.engine.signed_broadcast import check_signed
from hybridflow.types import Completion, Lease, MemoryTag, SamplingParams
from hybridflow.weights.broadcast import Broadcast, BroadcastGroup
from hybridflow.weights.manifest import Bucket, TensorEntry
from hybridflow.weights.reshard.shard_bucket import ShardRound, Verify
from hybridflow.weights.shared_buckets import SharedBucket
from hybridflow.wire.completion_sender import CompletionSender
from hybridflow.wire.endpoint import Endpoint
from megatron_ext.platform.device import find_device


class RolloutWorker:
    """One engine. Created with max_concurrency above 1, so that `status` answers while weights are loaded."""

    def __init__(
        self,
        engine_id: str,
        model_path: str,
        arguments: dict[str, Any],
        run_seed: int,
        endpoint: Endpoint,
        log_path: str,
        initial_version: int | None,
        index: int,
        verify: Verify,
        reservations: Sequence[Any],
    ) -> None:
        redirect_output(Path(log_path))
        configure(engine_id)
        devices = devices_of(engine_id, reservations)
        if devices is not None:
            # SGLang counts GPUs up from the first; its processes, which it starts later, see only these, in this order.
            os.environ[VISIBLE] = ",".join(devices)
        self._folder = PrivateFolder()
        keep_private(self._folder.path)
        leave_allocator_alone(os.environ)
        self._device = find_device()
        if not self._device.has_cuda:
            start_server()
        self._engine = SGLangEngine(
            model_path,
            arguments,
            run_seed=run_seed,
            index=index,
            verify=verify,
            device=self._device,
            initial_version=initial_version,
        )
        check_signed()
        if self._device.has_cuda:
            self._engine.warm_up()  # not run on a GPU yet
        self._sender = CompletionSender(endpoint, engine_id)

    def ping(self) -> int:
        """Process id."""
        return os.getpid()

    def describe(self) -> EngineFacts:
        usage = self._engine.memory_usage()
        return EngineFacts(
            pid=os.getpid(),
            child_pids=self._engine.child_pids(),
            node_id=ray.get_runtime_context().get_node_id(),
            kv_cache_tokens=int(usage["token_capacity"]),
            taken_bytes=reported_bytes(usage) if self._device.has_cuda else {},
        )

    def status(self) -> EngineStatus:
        """Load and progress; raises what went wrong in decoding. One that is held back while rewards lag moves, too."""
        status = self._engine.status()
        return EngineStatus((*status.progress, int(1000 * self._sender.held_s)), status.num_in_flight)

    def submit(self, leases: list[Lease], sampling: SamplingParams) -> None:
        """Starts decoding; each completion goes to the driver as soon as it ends, with the attempt of its lease."""

        def deliver(attempt: int, completion: Completion) -> None:
            self._sender.send(completion, attempt)

        self._engine.submit(leases, sampling, deliver)

    def abort(self) -> None:
        self._engine.abort()

    def release(self, tags: list[MemoryTag]) -> int | None:
        return self._engine.release(tags)

    def resume(self, tags: list[MemoryTag]) -> None:
        self._engine.resume(tags)

    def begin_weights(self, version: int) -> None:
        self._engine.begin_weights(version)

    def join_group(self, group: BroadcastGroup, rank_offset: int) -> None:
        self._engine.join_group(group, rank_offset)

    def load_bucket(self, bucket: Bucket | SharedBucket | ShardRound | Broadcast) -> None:
        self._engine.load_bucket(bucket)

    def end_weights(self) -> tuple[int, list[TensorEntry]]:
        return self._engine.end_weights()

    def close(self) -> None:
        self._sender.close()
        self._engine.shutdown()
        self._folder.close()
