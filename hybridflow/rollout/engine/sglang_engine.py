"""One SGLang engine, driven in process through its tokenizer manager.

The `Engine` object rather than the HTTP server: weights are handed to the scheduler by shared memory without passing
through JSON, and the tokenizer manager it holds gives everything that the server's endpoints give (abort, pause, weight
sessions, memory release). Its event loop runs in a thread of its own, so that an abort or a health check is answered
while completions are being decoded.

Order and randomness. All prompts of a `submit` go to the scheduler in ONE message, and when they are in its cache all
completions in another, so the batches that it forms depend on the requests alone and not on the speed of this process.
Every completion carries its own seed, derived from the run seed and its id; on CPU a plugin makes SGLang honour it
(`cpu_platform/plugin.py`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from hybridflow.errors import RolloutError, WeightSyncError
from hybridflow.rollout.engine.memory import EngineMemory
from hybridflow.rollout.engine.sglang_messages import (
    check_reason,
    completion_seed,
    input_tokens,
    is_own_abort,
    to_completion,
    to_sglang,
    undecoded,
    with_distribution,
)
from hybridflow.rollout.engine_weights import EngineWeights
from hybridflow.rollout.shard_loader import ShardLoader
from hybridflow.rollout.weight_api import WeightApi
from hybridflow.types import Completion, GroupRequest, Lease, MemoryTag, SamplingParams
from hybridflow.weights.broadcast import Broadcast, BroadcastGroup
from hybridflow.weights.manifest import Bucket, TensorEntry
from hybridflow.weights.reshard.shard_bucket import ShardRound
from hybridflow.weights.shared_buckets import SharedBucket
from hybridflow.wire.messages import build_completion_id

logger = logging.getLogger(__name__)

T = TypeVar("T")
IDLE_TIMEOUT_S = 10.0
"""Time that SGLang gets to put away requests that have ended."""
Deliver = Callable[[int, Completion], None]
"""Takes the attempt of a lease and a completion decoded under it; may block, in a thread of its own."""


@dataclass(frozen=True)
class EngineFacts:
    """What the driver must know of an engine that has started."""

    pid: int
    child_pids: list[int]
    """SGLang's own processes."""
    node_id: str
    kv_cache_tokens: int
    taken_bytes: dict[MemoryTag, int] = field(default_factory=dict)
    """What each rank took of its GPU; none on a CPU."""


@dataclass(frozen=True)
class EngineStatus:
    """How an engine is doing."""

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
        initial_version: confirms the weights of `model_path` under this version; otherwise they have to be published.
        shards: the engine's end of exact resharding.
    """

    def __init__(
        self,
        model_path: str,
        arguments: dict[str, Any],
        *,
        run_seed: int,
        shards: ShardLoader,
        initial_version: int | None = None,
    ) -> None:
        from sglang.srt.entrypoints.engine import Engine
        from sglang.srt.managers import io_struct
        from sglang.version import __version__ as sglang_version

        self._run_seed = run_seed
        if initial_version is not None:
            arguments = arguments | {"weight_version": str(initial_version)}
        self._engine = Engine(model_path=model_path, **arguments)
        self._tokenizer_manager: Any = self._engine.tokenizer_manager
        self._loop = self._engine.loop
        self._thread = threading.Thread(target=self._loop.run_forever, name="sglang-loop", daemon=True)
        self._thread.start()
        api = WeightApi(self._tokenizer_manager, io_struct, sglang_version, self._run)
        self._weights = EngineWeights(api, shards, self._engine.server_args.tp_size)
        self._memory = EngineMemory(self._engine, self._run)
        self._version = initial_version
        # Completions are handed over in a thread of their own: it is held back while rewards lag, and the loop is not.
        self._handing_over = ThreadPoolExecutor(max_workers=1, thread_name_prefix="deliver")
        self._num_in_flight = 0
        self._num_delivered = 0
        self._num_aborts = 0
        self._failure: BaseException | None = None

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
        if self._version is None or self._weights.is_in_session:
            raise RolloutError("the engine has no confirmed weights version: publish weights before generating")
        if self._memory.released:
            raise RolloutError(
                f"the engine's memory is released ({', '.join(sorted(self._memory.released))}): resume it first"
            )
        self._num_in_flight += sum(len(lease.indices) for lease in leases)
        future = asyncio.run_coroutine_threadsafe(self._generate(leases, sampling, deliver), self._loop)
        future.add_done_callback(self._note_failure)

    async def _generate(self, leases: list[Lease], sampling: SamplingParams, deliver: Deliver) -> None:
        from sglang.srt.managers import io_struct

        # No id is the beginning of another, as SGLang aborts by prefix; and a lease that comes back to this engine must
        # not meet its old requests.
        by_id = {
            f"{build_completion_id(lease.request.group_id, index)}/{lease.attempt}/": (lease, index)
            for lease in leases
            for index in lease.indices
        }
        if not by_id:
            return
        num_aborts = self._num_aborts
        cached = await self._prefill_prompts(leases)
        if self._num_aborts != num_aborts:
            for lease, index in by_id.values():
                completion = undecoded(lease.request, index, self._version)
                await self._deliver(deliver, lease, with_distribution(completion, lease.request, sampling))
            return
        request = io_struct.GenerateReqInput(
            input_ids=[input_tokens(lease.request, index) for lease, index in by_id.values()],
            sampling_params=[self._sampling_of(lease, index, sampling) for lease, index in by_id.values()],
            rid=list(by_id),
            return_logprob=[True] * len(by_id),
            return_sampling_mask=True if sampling.returns_support else None,
            stream=True,
        )
        stream = self._tokenizer_manager.generate_request(request, None)
        async for output in stream:
            if output["meta_info"]["finish_reason"] is None:
                continue
            lease, index = by_id.pop(output["meta_info"]["id"])
            completion = self._read(lease.request, index, output, sampling)
            if index == lease.indices[0] and lease.request.group_id in cached:
                completion = msgspec.structs.replace(completion, cached_tokens=cached[lease.request.group_id])
            await self._deliver(deliver, lease, completion)
        if by_id:
            raise RolloutError(f"SGLang ended the stream without {len(by_id)} completions, among them {min(by_id)}")

    def _read(self, request: GroupRequest, index: int, output: dict[str, Any], sampling: SamplingParams) -> Completion:
        """What SGLang answered; as aborted with what was there before where it gave up by itself."""
        reason = output["meta_info"]["finish_reason"]
        if is_own_abort(reason):
            logger.warning("SGLang aborted %s: %s", build_completion_id(request.group_id, index), reason.get("message"))
            return with_distribution(undecoded(request, index, self._version), request, sampling)
        completion = to_completion(request, index, output, self._version, self._decode_text, sampling.returns_support)
        return with_distribution(completion, request, sampling)

    def _sampling_of(self, lease: Lease, index: int, sampling: SamplingParams) -> dict[str, Any]:
        request = lease.request
        name = build_completion_id(request.seed_id or request.group_id, index)
        seed = completion_seed(self._run_seed, name, lease.num_aborts.get(index, 0))
        partial = request.partial(index)
        return to_sglang(sampling, seed, len(partial.token_ids) if partial else 0)

    def _decode_text(self, token_ids: list[int]) -> str:
        return self._tokenizer_manager.tokenizer.decode(token_ids, skip_special_tokens=True)

    async def _prefill_prompts(self, leases: list[Lease]) -> dict[str, int]:
        """Puts the prompt of each group into the prefix cache; by group, how much of it was there before.

        Left to itself SGLang fills up a prefill batch with the beginning of another completion of the group, which then
        computes the whole prompt again. One token is decoded with it, and dropped. The first completion of the lease
        accounts for what was computed here.
        """
        shared = [lease for lease in leases if len(lease.indices) > 1]
        if not shared:
            return {}
        # A seed, as seeds count only in a batch where every request has one.
        sampling = {"temperature": 0.0, "max_new_tokens": 1, "sampling_seed": 0}
        outputs = await self._engine.async_generate(
            input_ids=[lease.request.prompt.token_ids for lease in shared],
            sampling_params=[sampling] * len(shared),
            rid=[f"{lease.request.group_id}/prompt/{lease.attempt}/" for lease in shared],
        )
        for lease, output in zip(shared, outputs, strict=True):
            check_reason(output["meta_info"]["finish_reason"], f"the prompt of group {lease.request.group_id}")
        return {
            lease.request.group_id: int(output["meta_info"].get("cached_tokens", 0))  # none where it was aborted
            for lease, output in zip(shared, outputs, strict=True)
        }

    async def _deliver(self, deliver: Deliver, lease: Lease, completion: Completion) -> None:
        await self._loop.run_in_executor(self._handing_over, deliver, lease.attempt, completion)
        self._num_in_flight -= 1
        self._num_delivered += 1

    def _note_failure(self, future: Future[None]) -> None:
        if not future.cancelled() and self._failure is None:
            self._failure = future.exception()

    def status(self) -> EngineStatus:
        """Load and progress. Raises what went wrong in decoding."""
        if self._failure is not None:
            raise self._failure
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
        return EngineStatus((self._num_delivered, *moving), self._num_in_flight)

    def abort(self) -> None:
        """Ends every running request; each is delivered with what it has, finish_reason "abort"."""

        def end_all() -> None:
            self._num_aborts += 1
            self._tokenizer_manager.abort_request(abort_all=True)

        self._loop.call_soon_threadsafe(end_all)

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
            self._version = None
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
        """Opens a weight session, for which released weights come back. Until `end_weights` succeeds, the engine
        generates nothing."""
        self.resume(["weights", "cuda_graph"])
        self._weights.begin(version)

    def load_bucket(self, bucket: Bucket | SharedBucket | ShardRound | Broadcast) -> None:
        """Verifies a bucket and loads it, see `EngineWeights.load`."""
        self._weights.load(bucket)

    def join_group(self, group: BroadcastGroup, rank_offset: int) -> None:
        """Those who receive broadcast buckets in this session, see `EngineWeights.join_group`."""
        self._weights.join_group(group, rank_offset)

    def end_weights(self) -> tuple[int, list[TensorEntry]]:
        """Closes the session, drops cached keys and values of the old weights, and returns (version, what was loaded).

        The version is read back from SGLang, not assumed.
        """
        from sglang.srt.managers import io_struct

        version = self._weights.verify()
        self._flush(None, f"after weights version {version}")
        request = io_struct.UpdateWeightVersionReqInput(new_version=str(version))
        self._run(self._tokenizer_manager.update_weight_version(request))
        confirmed = self._engine.get_model_info()["weight_version"]
        if confirmed != str(version):
            raise WeightSyncError(f"SGLang reports weights version {confirmed!r} after version {version} was loaded")
        self._version = version
        return version, self._weights.end()

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
        self._handing_over.shutdown(wait=False, cancel_futures=True)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
