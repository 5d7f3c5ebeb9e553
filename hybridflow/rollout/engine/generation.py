"""Generation of one SGLang engine: what leases ask for becomes requests, and each output a completion.

Order and randomness. All prompts of a `submit` go to the scheduler in ONE message, and when they are in its cache all
completions in another, so the batches that it forms depend on the requests alone and not on the speed of this process.
Every completion carries its own seed, derived from the run seed and its id; on CPU a plugin makes SGLang honour it
(`engine/plugin.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec

from hybridflow.errors import RolloutError
from hybridflow.rollout.engine.experts import ExpertReader, build_request
from hybridflow.rollout.engine.sglang_messages import (
    PromptExperts,
    check_reason,
    completion_seed,
    input_tokens,
    is_own_abort,
    to_completion,
    to_sglang,
    undecoded,
    with_distribution,
)
from hybridflow.types import Completion, GroupRequest, Lease, Packed, SamplingParams
from hybridflow.wire.messages import build_completion_id

logger = logging.getLogger(__name__)

Deliver = Callable[[int, Completion], None]
"""Takes the attempt of a lease and a completion decoded under it; may block, in a thread of its own."""


class Generation:
    """Requests of one engine, in its event loop; other threads call `submit`, `abort` and `check`.

    Args:
        engine: SGLang's Engine object.
        run_seed: Enters every completion's seed.
        version: Weights version that the engine has confirmed.
        reader: Of the experts that it chooses; None where nobody asks for them.
    """

    def __init__(self, engine: Any, run_seed: int, version: int | None, reader: ExpertReader | None = None) -> None:
        self._engine = engine
        self._tokenizer_manager: Any = engine.tokenizer_manager
        self._loop: asyncio.AbstractEventLoop = engine.loop
        self._run_seed = run_seed
        self._reader = reader
        self.version = version
        """Confirmed weights version; None: nothing may be decoded."""
        self.num_in_flight = 0
        """Completions asked for and not delivered."""
        self.num_delivered = 0
        self._num_aborts = 0
        self._failure: BaseException | None = None
        # Completions are handed over in a thread of their own: it is held back while rewards lag, and the loop is not.
        self._handing_over = ThreadPoolExecutor(max_workers=1, thread_name_prefix="deliver")

    def submit(self, leases: list[Lease], sampling: SamplingParams, deliver: Deliver) -> None:
        """Starts decoding and returns; `deliver` gets each completion as soon as it ends. `check` raises what fails."""
        self.num_in_flight += sum(len(lease.indices) for lease in leases)
        future = asyncio.run_coroutine_threadsafe(self._generate(leases, sampling, deliver), self._loop)
        future.add_done_callback(self._note_failure)

    def check(self) -> None:
        """Raises what went wrong in decoding."""
        if self._failure is not None:
            raise self._failure

    def abort(self) -> None:
        """Ends every running request; each is delivered with what it has, finish_reason "abort"."""

        def end_all() -> None:
            self._num_aborts += 1
            self._tokenizer_manager.abort_request(abort_all=True)

        self._loop.call_soon_threadsafe(end_all)

    def close(self) -> None:
        """Delivers nothing more."""
        self._handing_over.shutdown(wait=False, cancel_futures=True)

    async def _generate(self, leases: list[Lease], sampling: SamplingParams, deliver: Deliver) -> None:
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
        reader = self._reader if sampling.returns_experts else None
        prefilled = await self._prefill_prompts(leases, reader is not None)
        if self._num_aborts != num_aborts:
            for lease, index in by_id.values():
                completion = undecoded(lease.request, index, self.version)
                await self._deliver(deliver, lease, with_distribution(completion, lease.request, sampling))
            return
        prompts = PromptExperts(self._read_prompts(leases, prefilled, reader))
        fields = {
            "input_ids": [input_tokens(lease.request, index) for lease, index in by_id.values()],
            "sampling_params": [self._sampling_of(lease, index, sampling) for lease, index in by_id.values()],
            "rid": list(by_id),
            "return_logprob": [True] * len(by_id),
            "return_sampling_mask": True if sampling.returns_sampling_mask else None,
            "stream": True,
        }
        request = build_request(fields, reader and [prompts.start_of(lease.request) for lease, _ in by_id.values()])
        stream = self._tokenizer_manager.generate_request(request, None)
        num_left = len(by_id)
        async for output in stream:
            if output["meta_info"]["finish_reason"] is None:
                continue
            lease, index = by_id[output["meta_info"]["id"]]
            num_left -= 1
            completion = self._read(lease.request, index, output, sampling)
            completion = with_distribution(completion, lease.request, sampling)
            if reader is not None and completion.finish_reason != "abort":
                num_tokens = completion.prompt_tokens - 1 - prompts.start_of(lease.request) + len(completion.tokens)
                encoded = output["meta_info"].get("routed_experts")
                completion = prompts.add(completion, reader.read(encoded, num_tokens, completion.completion_id))
            if index == lease.indices[0] and lease.request.group_id in prefilled:
                meta = prefilled[lease.request.group_id]
                # None where it was aborted.
                completion = msgspec.structs.replace(completion, cached_tokens=int(meta.get("cached_tokens", 0)))
            await self._deliver(deliver, lease, completion)
        if num_left:
            raise RolloutError(f"SGLang ended the stream without {num_left} of the completions {', '.join(by_id)}")

    def _read(self, request: GroupRequest, index: int, output: dict[str, Any], sampling: SamplingParams) -> Completion:
        """Read SGLang's answer; as aborted with what was there before where it gave up by itself."""
        reason = output["meta_info"]["finish_reason"]
        if is_own_abort(reason):
            logger.warning("SGLang aborted %s: %s", build_completion_id(request.group_id, index), reason.get("message"))
            return undecoded(request, index, self.version)
        return to_completion(request, index, output, self.version, self._decode_text, sampling.returns_sampling_mask)

    def _sampling_of(self, lease: Lease, index: int, sampling: SamplingParams) -> dict[str, Any]:
        request = lease.request
        name = build_completion_id(request.seed_id or request.group_id, index)
        seed = completion_seed(self._run_seed, name, lease.num_aborts.get(index, 0))
        partial = request.partial(index)
        return to_sglang(sampling, seed, len(partial.tokens) if partial else 0)

    def _decode_text(self, token_ids: list[int]) -> str:
        return self._tokenizer_manager.tokenizer.decode(token_ids, skip_special_tokens=True)

    async def _prefill_prompts(self, leases: list[Lease], tells_experts: bool) -> dict[str, dict[str, Any]]:
        """Puts the prompt of each group into the prefix cache; by group, what SGLang says of it.

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
            return_routed_experts=tells_experts,
        )
        for lease, output in zip(shared, outputs, strict=True):
            check_reason(output["meta_info"]["finish_reason"], f"the prompt of group {lease.request.group_id}")
        return {lease.request.group_id: output["meta_info"] for lease, output in zip(shared, outputs, strict=True)}

    def _read_prompts(
        self, leases: list[Lease], prefilled: dict[str, dict[str, Any]], reader: ExpertReader | None
    ) -> dict[str, Packed]:
        """By group, the experts of all tokens of its prompt but the last, where it was computed for the group."""
        if reader is None:
            return {}
        prompts = {lease.request.group_id: len(lease.request.prompt.token_ids) for lease in leases}
        return {
            group_id: reader.read(
                meta.get("routed_experts"), prompts[group_id], f"the prompt of group {group_id}"
            ).take(range(prompts[group_id] - 1))
            for group_id, meta in prefilled.items()
        }

    async def _deliver(self, deliver: Deliver, lease: Lease, completion: Completion) -> None:
        await self._loop.run_in_executor(self._handing_over, deliver, lease.attempt, completion)
        self.num_in_flight -= 1
        self.num_delivered += 1

    def _note_failure(self, future: Future[None]) -> None:
        if not future.cancelled() and self._failure is None:
            self._failure = future.exception()
