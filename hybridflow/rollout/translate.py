"""What SGLang is asked and what it answers, in our words. Pure."""

from __future__ import annotations

import hashlib
from typing import Any

from hybridflow.errors import ProtocolError, RolloutError
from hybridflow.types import Completion, FinishReason, GroupRequest, SamplingParams
from hybridflow.wire.messages import build_completion_id


def completion_seed(run_seed: int, completion_id: str) -> int:
    """Sampling seed in [0, 2^31) of one completion."""
    digest = hashlib.blake2b(f"{run_seed}/{completion_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (1 << 31)


def to_sglang(sampling: SamplingParams, seed: int) -> dict[str, Any]:
    """Sampling parameters of one request."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_new_tokens": sampling.max_new_tokens,
        "stop_token_ids": sampling.stop_token_ids or None,
        "stop": sampling.stop or None,
        "sampling_seed": seed,
    }


def to_completion(request: GroupRequest, index: int, output: dict[str, Any], confirmed: int | None) -> Completion:
    """The completion in a finished output.

    Raises RolloutError if SGLang refused it, and ProtocolError if it was decoded by another weights version than
    `confirmed`.
    """
    meta = output["meta_info"]
    completion_id = build_completion_id(request.group_id, index)
    reason = meta["finish_reason"]
    check_reason(reason, f"completion {completion_id}")
    version = int(meta["weight_version"])
    if version != confirmed:
        raise ProtocolError(
            f"completion {completion_id} was decoded by weights version {version}, the engine confirmed {confirmed}"
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
        num_retractions=int(meta.get("num_retractions", 0)),
    )


def undecoded(request: GroupRequest, index: int, confirmed: int | None) -> Completion:
    """A completion that was aborted before its first token."""
    assert confirmed is not None
    return Completion(
        completion_id=build_completion_id(request.group_id, index),
        group_id=request.group_id,
        prompt_id=request.prompt.prompt_id,
        index=index,
        token_ids=[],
        rollout_logprobs=[],
        text="",
        finish_reason="abort",
        policy_version=confirmed,
        prompt_tokens=len(request.prompt.token_ids),
        cached_tokens=len(request.prompt.token_ids),
    )


def check_reason(reason: dict[str, Any], what: str) -> None:
    """Raises RolloutError for an end that means that SGLang did not take the request."""
    if reason["type"] not in ("stop", "length", "abort") or reason.get("status_code"):
        raise RolloutError(f"SGLang refused {what}: {reason}")
