"""One SGLang engine, driven in process through its tokenizer manager.

The `Engine` object rather than the HTTP server: weights are handed to the scheduler by shared memory without passing
through JSON, and the tokenizer manager it holds gives everything that the server's endpoints give (abort, pause, weight
sessions, memory release). Its event loop runs in a thread of its own, so that an abort or a health check is answered
while completions are being decoded.

Order and randomness. All completions of a call go to the scheduler in ONE message, so the batches that it forms depend
on the requests alone and not on the speed of this process. Every completion carries its own seed, derived from the run
seed and its id; on CPU a plugin makes SGLang honour it (`cpu_platform/plugin.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hybridflow.errors import ProtocolError, RolloutError, WeightSyncError
from hybridflow.types import Completion, FinishReason, GroupRequest, SamplingParams
from hybridflow.weights.manifest import Bucket, TensorEntry, check_bucket
from hybridflow.wire.messages import build_completion_id

T = TypeVar("T")


def completion_seed(run_seed: int, completion_id: str) -> int:
    """Sampling seed in [0, 2^31) of one completion."""
    digest = hashlib.blake2b(f"{run_seed}/{completion_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (1 << 31)


class SGLangEngine:
    """Starts SGLang for one HF model directory and speaks with it.

    Args:
        model_path: HF directory; architecture, tokenizer and first weights come from it.
        arguments: SGLang ServerArgs fields (`arguments.build_arguments` makes them).
        run_seed: enters every completion's seed.
    """

    def __init__(self, model_path: str, arguments: dict[str, Any], *, run_seed: int) -> None:
        from sglang.srt.entrypoints.engine import Engine

        self._run_seed = run_seed
        self._engine = Engine(model_path=model_path, **arguments)
        self._tokenizer_manager: Any = self._engine.tokenizer_manager
        self._loop = self._engine.loop
        self._thread = threading.Thread(target=self._loop.run_forever, name="sglang-loop", daemon=True)
        self._thread.start()
        self._version: int | None = None
        self._loaded: list[TensorEntry] = []
        self._session_version: int | None = None

    # ------------------------------------------------------------------------------------------------ generation

    def generate(
        self, requests: list[GroupRequest], sampling: SamplingParams, deliver: Callable[[Completion], None]
    ) -> int:
        """Decodes every completion of every group; `deliver` gets each as soon as it ends. Returns their number.

        Raises RolloutError if no weights version was confirmed or SGLang refuses a request, and ProtocolError if a
        completion was decoded by another version than the one confirmed.
        """
        if self._version is None or self._session_version is not None:
            raise RolloutError("the engine has no confirmed weights version: publish weights before generating")
        return self._run(self._generate(requests, sampling, deliver))

    async def _generate(
        self, requests: list[GroupRequest], sampling: SamplingParams, deliver: Callable[[Completion], None]
    ) -> int:
        # The first completion of every group leads, so that its prompt is prefilled before the others of the group ask
        # for it: they find it in the cache even when the queue is too long for SGLang's in-queue prefix matching (128).
        expected: list[tuple[GroupRequest, int, str]] = sorted(
            (
                (request, index, build_completion_id(request.group_id, index))
                for request in requests
                for index in range(request.num_completions)
            ),
            key=lambda item: item[1] > 0,
        )
        if not expected:
            return 0
        stream = await self._engine.async_generate(
            input_ids=[request.prompt.token_ids for request, _, _ in expected],
            sampling_params=[self._sglang_sampling(sampling, completion_id) for _, _, completion_id in expected],
            rid=[completion_id for _, _, completion_id in expected],
            return_logprob=[True] * len(expected),
            stream=True,
        )
        by_id = {completion_id: (request, index) for request, index, completion_id in expected}
        async for output in stream:
            reason = output["meta_info"]["finish_reason"]
            if reason is None:
                continue
            request, index = by_id.pop(output["meta_info"]["id"])
            deliver(self._to_completion(request, index, output))
        if by_id:
            raise RolloutError(f"SGLang ended the stream without {len(by_id)} completions, among them {min(by_id)}")
        return len(expected)

    def _sglang_sampling(self, sampling: SamplingParams, completion_id: str) -> dict[str, Any]:
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_new_tokens": sampling.max_new_tokens,
            "stop_token_ids": sampling.stop_token_ids or None,
            "stop": sampling.stop or None,
            "sampling_seed": completion_seed(self._run_seed, completion_id),
        }

    def _to_completion(self, request: GroupRequest, index: int, output: dict[str, Any]) -> Completion:
        meta = output["meta_info"]
        completion_id = meta["id"]
        reason = meta["finish_reason"]
        if reason["type"] not in ("stop", "length", "abort") or reason.get("status_code"):
            raise RolloutError(f"SGLang refused completion {completion_id}: {reason}")
        version = int(meta["weight_version"])
        if version != self._version:
            raise ProtocolError(
                f"completion {completion_id} was decoded by weights version {version}, "
                f"the engine confirmed {self._version}"
            )
        logprobs = [float(entry[0]) for entry in meta["output_token_logprobs"]]
        finish: FinishReason = reason["type"]
        return Completion(
            completion_id=completion_id,
            group_id=request.group_id,
            prompt_id=request.prompt.prompt_id,
            index=index,
            token_ids=list(output["output_ids"]),
            rollout_logprobs=logprobs,
            text=output["text"],
            finish_reason=finish,
            policy_version=version,
            prompt_tokens=int(meta["prompt_tokens"]),
            cached_tokens=int(meta["cached_tokens"]),
        )

    def abort(self) -> None:
        """Ends every running request; each is delivered with what it has, finish_reason "abort"."""
        self._loop.call_soon_threadsafe(lambda: self._tokenizer_manager.abort_request(abort_all=True))

    # --------------------------------------------------------------------------------------------------- weights

    def begin_weights(self, version: int) -> None:
        """Opens a weight session. Until `end_weights` succeeds, the engine generates nothing."""
        from sglang.srt.managers import io_struct

        self._session_version = version
        self._loaded = []
        self._check(
            self._run(self._tokenizer_manager.begin_weight_update(io_struct.BeginWeightUpdateReqInput())), "begin"
        )

    def load_bucket(self, bucket: Bucket) -> None:
        """Verifies a bucket and loads it under its HF names; SGLang slices for each of its TP ranks."""
        from sglang.srt.managers import io_struct
        from sglang.srt.utils import MultiprocessingSerializer

        if bucket.version != self._session_version:
            raise WeightSyncError(
                f"bucket of version {bucket.version} in a session for version {self._session_version}"
            )
        check_bucket(bucket)
        named = [(entry.name, tensor) for entry, tensor in zip(bucket.entries, bucket.tensors, strict=True)]
        ranks = self._engine.server_args.tp_size
        request = io_struct.UpdateWeightsFromTensorReqInput(
            serialized_named_tensors=[MultiprocessingSerializer.serialize(named) for _ in range(ranks)],
            flush_cache=False,
        )
        self._check(self._run(self._tokenizer_manager.update_weights_from_tensor(request, None)), "load a bucket")
        self._loaded.extend(bucket.entries)

    def end_weights(self) -> tuple[int, list[TensorEntry]]:
        """Closes the session, drops cached keys and values of the old weights, and returns (version, what was loaded).

        The version is read back from SGLang, not assumed.
        """
        from sglang.srt.managers import io_struct

        manager, version = self._tokenizer_manager, self._session_version
        self._check(self._run(manager.end_weight_update(io_struct.EndWeightUpdateReqInput())), "end")
        flushed = self._run(manager.flush_cache())
        if not flushed.success:
            raise WeightSyncError(
                f"SGLang could not flush its cache after weights version {version}: requests still run"
            )
        self._run(manager.update_weight_version(io_struct.UpdateWeightVersionReqInput(new_version=str(version))))
        confirmed = self._engine.get_model_info()["weight_version"]
        if confirmed != str(version):
            raise WeightSyncError(f"SGLang reports weights version {confirmed!r} after version {version} was loaded")
        self._version, self._session_version = version, None
        assert version is not None
        return version, self._loaded

    @staticmethod
    def _check(result: tuple[bool, str], action: str) -> None:
        # SGLang reports a refused update as (False, message) and does not raise.
        success, message = result
        if not success:
            raise WeightSyncError(f"SGLang refused to {action} the weight update: {message}")

    # ------------------------------------------------------------------------------------------------- life cycle

    def child_pids(self) -> list[int]:
        """Process ids of the scheduler and detokenizer."""
        return self._engine.get_all_child_pids()

    def shutdown(self) -> None:
        """Ends SGLang's processes; the engine cannot be used afterwards."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._engine.shutdown()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
