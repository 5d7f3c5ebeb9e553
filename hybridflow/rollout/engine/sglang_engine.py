"""One SGLang engine, driven in process through its tokenizer manager.

The `Engine` object rather than the HTTP server: weights are handed to the scheduler by shared memory without passing
through JSON, and the tokenizer manager it holds gives everything that the server's endpoints give (abort, pause, weight
sessions, memory release). Its event loop runs in a thread of its own, so that an abort or a health check is answered
while completions are being decoded (`generation.py`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hybridflow.errors import RolloutError, WeightSyncError
from hybridflow.rollout.engine.arguments import TELLS_EXPERTS
from hybridflow.rollout.engine.experts import open_reader
from hybridflow.rollout.engine.generation import Deliver, Generation
from hybridflow.rollout.engine.memory import EngineMemory
from hybridflow.rollout.sync.load import EngineWeights
from hybridflow.rollout.sync.sglang_api import WeightApi
from hybridflow.types import Lease, MemoryTag, SamplingParams
from hybridflow.weights.broadcast import Broadcast, BroadcastGroup
from hybridflow.weights.manifest import Bucket, TensorEntry
from hybridflow.weights.reshard.shard_bucket import ShardRound, Verify
from hybridflow.weights.shared_buckets import SharedBucket
from megatron_ext.platform.device import Device

T = TypeVar("T")
IDLE_TIMEOUT_S = 10.0
"""Time that SGLang gets to put away requests that have ended."""


@dataclass(frozen=True)
class EngineFacts:
    """Facts that the driver must know of an engine that has started."""

    pid: int
    child_pids: list[int]
    """SGLang's own processes."""
    node_id: str
    kv_cache_tokens: int
    taken_bytes: dict[MemoryTag, int] = field(default_factory=dict)
    """Bytes that each rank took of its GPU; none on a CPU."""


@dataclass(frozen=True)
class EngineStatus:
    """Load and progress of an engine."""

    progress: tuple[int, ...]
    """Changes while the engine works: completions delivered, and what SGLang's scheduler says of its load."""
    num_in_flight: int
    """Completions that it owes."""


class SGLangEngine:
    """Starts SGLang for one HF model directory and speaks with it.

    Args:
        model_path: HF directory; architecture, tokenizer and first weights come from it.
        arguments: SGLang ServerArgs fields (`arguments.build_arguments` makes them).
        run_seed: enters every completion's seed.
        index: place of the engine among those of the run.
        verify: which parameters SGLang is asked to confirm after a weight sync.
        device: what its ranks compute on.
        initial_version: confirms the weights of `model_path` under this version; otherwise they have to be published.
    """

    def __init__(
        self,
        model_path: str,
        arguments: dict[str, Any],
        *,
        run_seed: int,
        index: int,
        verify: Verify,
        device: Device,
        initial_version: int | None = None,
    ) -> None:
        from sglang.srt.entrypoints.engine import Engine
        from sglang.srt.managers import io_struct
        from sglang.version import __version__ as sglang_version

        if initial_version is not None:
            arguments = arguments | {"weight_version": str(initial_version)}
        self._engine = Engine(model_path=model_path, **arguments)
        self._tokenizer_manager: Any = self._engine.tokenizer_manager
        self._loop = self._engine.loop
        self._thread = threading.Thread(target=self._loop.run_forever, name="sglang-loop", daemon=True)
        self._thread.start()
        api = WeightApi(self._tokenizer_manager, io_struct, sglang_version, self._run)
        self.weights = EngineWeights(api, index, verify, self._engine.server_args.tp_size, device)
        self._memory = EngineMemory(self._engine, self._run, device)
        reader = open_reader(model_path) if arguments.get(TELLS_EXPERTS) else None
        self._generation = Generation(self._engine, run_seed, initial_version, reader)

    def warm_up(self) -> None:
        """Decodes two tokens with whatever weights there are, and forgets them: what SGLang compiles at its first
        request is compiled before the engine says that it is ready, and not within the time limits of a step."""
        sampling = {"temperature": 1.0, "max_new_tokens": 2, "ignore_eos": True, "sampling_seed": 0}
        self._run(self._engine.async_generate(input_ids=[[0, 1, 2, 3]], sampling_params=[sampling], rid=["warm-up/"]))
        self._flush(IDLE_TIMEOUT_S, "after its first request")

    # ------------------------------------------------------------------------------------------------ generation

    def submit(self, leases: list[Lease], sampling: SamplingParams, deliver: Deliver) -> None:
        """Starts decoding what these leases ask for and returns; `deliver` gets each completion as soon as it ends.

        Raises RolloutError if no weights version was confirmed. What goes wrong later is raised by `status`:
        RolloutError if SGLang refuses a request, ProtocolError if a completion was decoded by another version than the
        one confirmed.
        """
        if self._generation.version is None or self.weights.is_in_sync:
            raise RolloutError("the engine has no confirmed weights version: publish weights before generating")
        if self._memory.released:
            raise RolloutError(
                f"the engine's memory is released ({', '.join(sorted(self._memory.released))}): resume it first"
            )
        self._generation.submit(leases, sampling, deliver)

    def status(self) -> EngineStatus:
        """Load and progress. Raises what went wrong in decoding."""
        self._generation.check()
        loads = self._run(self._tokenizer_manager.get_loads())
        moving = [
            number
            for load in loads
            for number in (
                load.num_running_reqs,
                load.num_waiting_reqs,
                load.num_used_tokens,
                load.total_prefill_uncached_tokens,
            )
        ]
        return EngineStatus((self._generation.num_delivered, *moving), self._generation.num_in_flight)

    def abort(self) -> None:
        """Ends every running request; each is delivered with what it has, finish_reason "abort"."""
        self._generation.abort()

    # ---------------------------------------------------------------------------------------------------- memory

    def release(self, tags: Sequence[MemoryTag]) -> int | None:
        """Gives this memory back; returns the bytes by which SGLang's processes shrank on a CPU, None with CUDA.

        Without its weights the engine generates nothing until others are published. Raises RolloutError if requests
        run, or if the engine was opened without `rollout.release_memory`.
        """
        if not self._memory.may_release(tags):
            return 0
        # SGLang would end with an assertion if it were not idle, and this waits until it is.
        self._flush(IDLE_TIMEOUT_S, "before its memory is released")
        if "weights" in tags:
            self._generation.version = None
        return self._memory.release(tags)

    def resume(self, tags: Sequence[MemoryTag]) -> None:
        """Takes released memory again, its content undefined; does nothing for what was not released."""
        self._memory.resume(tags)

    def _flush(self, timeout_s: float | None, when: str) -> None:
        """Drops cached keys and values."""
        if not self._run(self._tokenizer_manager.flush_cache(timeout_s)).success:
            raise RolloutError(f"SGLang could not flush its cache {when}: requests still run")

    # --------------------------------------------------------------------------------------------------- weights

    def begin_weights(self, version: int) -> None:
        """Begins a weight sync, for which released weights come back. Until `end_weights` succeeds, the engine
        generates nothing."""
        self.resume(["weights", "cuda_graph"])
        self.weights.begin(version)

    def load_bucket(self, bucket: Bucket | SharedBucket | ShardRound | Broadcast) -> None:
        """Verifies a bucket and loads it, see `EngineWeights.load`."""
        self.weights.load(bucket)

    def join_group(self, group: BroadcastGroup, rank_offset: int) -> None:
        """Join the group that receives broadcast buckets in this sync, see `EngineWeights.join_group`."""
        self.weights.join_group(group, rank_offset)

    def end_weights(self) -> tuple[int, list[TensorEntry]]:
        """Ends the weight sync, drops cached keys and values of old weights, and returns (version, what was loaded).

        The version is read back from SGLang, not assumed.
        """
        from sglang.srt.managers import io_struct

        version = self.weights.verify()
        self._flush(None, f"after weights version {version}")
        request = io_struct.UpdateWeightVersionReqInput(new_version=str(version))
        self._run(self._tokenizer_manager.update_weight_version(request))
        confirmed = self._engine.get_model_info()["weight_version"]
        if confirmed != str(version):
            raise WeightSyncError(f"SGLang reports weights version {confirmed!r} after version {version} was loaded")
        self._generation.version = version
        return version, self.weights.end()

    # ------------------------------------------------------------------------------------------------- life cycle

    def child_pids(self) -> list[int]:
        """Process ids of the scheduler and detokenizer."""
        return self._engine.get_all_child_pids()

    def memory_usage(self) -> dict[str, Any]:
        """As SGLang reports it: its first rank's GiB by use, and under "token_capacity" the size of the KV pool."""
        (state,) = self._run(self._tokenizer_manager.get_internal_state())
        return state["memory_usage"]

    def shutdown(self) -> None:
        """Ends SGLang's processes; the engine cannot be used afterwards."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._engine.shutdown()
        self._generation.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
