"""Requests to SGLang and its answers, in our words. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from hybridflow.errors import ProtocolError, RolloutError
from hybridflow.types import (
    Completion,
    FinishReason,
    GroupRequest,
    Packed,
    Partial,
    Ragged,
    SamplingParams,
    TokenColumns,
    VersionRun,
)
from hybridflow.types.tokens import concatenate
from hybridflow.wire.messages import build_completion_id

MAX_MASK_TOKENS = 4096
"""With top_p below 1, most tokens that are left in at one place: top_k."""
MASK_LIMIT_TOKENS = 2 * MAX_MASK_TOKENS
"""Most that SGLang tells of. On CUDA all tokens stay in that are tied with the last one, above top_k, and SGLang aborts
a request with more than this; logits in bfloat16 have hundreds of ties."""
MASK_ABORTS = ("Sampling support exceeds", "The sampling backend ")
"""How SGLang 0.5.23 begins its reason where it cannot tell which tokens were left in."""


def completion_seed(run_seed: int, completion_id: str, num_aborts: int = 0) -> int:
    """Sampling seed in [0, 2^31) of one completion; another one after each time that an engine aborted it by itself."""
    again = f"/{num_aborts}" if num_aborts else ""
    digest = hashlib.blake2b(f"{run_seed}/{completion_id}{again}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (1 << 31)


def to_sglang(sampling: SamplingParams, seed: int, num_tokens_before: int = 0) -> dict[str, Any]:
    """Sampling parameters of one request; of the completion `num_tokens_before` tokens are there already."""
    rest = {"top_k": MAX_MASK_TOKENS} if sampling.returns_sampling_mask else {}
    rest |= {"ignore_eos": True} if sampling.ignores_end else {}
    return rest | {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_new_tokens": sampling.max_new_tokens - num_tokens_before,
        "stop_token_ids": sampling.stop_token_ids or None,
        "stop": sampling.stop or None,
        "sampling_seed": seed,
    }


def input_tokens(request: GroupRequest, index: int) -> list[int]:
    """Tokens that the engine is given: the prompt, and what is there of the completion."""
    partial = request.partial(index)
    return request.prompt.token_ids + partial.tokens.ids if partial else request.prompt.token_ids


def to_completion(
    request: GroupRequest,
    index: int,
    output: dict[str, Any],
    confirmed: int | None,
    decode_text: Callable[[list[int]], str],
    with_sampling_mask: bool = False,
) -> Completion:
    """The completion in a finished output, with what was there of it before in front.

    Of an aborted one the last token is left out: SGLang ends it without looking whether that token was the end.

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
    finish: FinishReason = reason["type"]
    token_ids = list(output["output_ids"])
    logprobs = [float(entry[0]) for entry in meta.get("output_token_logprobs") or []]
    mask: list[list[int]] = []
    if with_sampling_mask:
        mask = meta.get("output_token_sampling_mask") or []
        logprobs = [float(value) for value in meta.get("output_token_sampling_logprobs") or []]
    tokens = TokenColumns(ids=token_ids, rollout_logprobs=logprobs, sampling_mask=Ragged.of(mask))
    text = output["text"]
    if finish == "abort":
        tokens, text = tokens.first(min(max(0, len(token_ids) - 1), len(logprobs))), ""
    if with_sampling_mask and len(tokens.sampling_mask) != len(tokens):
        raise RolloutError(
            f"completion {completion_id} has {len(tokens)} tokens, and SGLang says of {len(tokens.sampling_mask)} "
            f"what could have been drawn: rollout.top_p below 1 needs that of each; set rollout.top_p = 1"
        )
    completion = Completion(
        completion_id=completion_id,
        group_id=request.group_id,
        prompt_id=request.prompt.prompt_id,
        index=index,
        tokens=tokens,
        text=text,
        finish_reason=finish,
        policy_version=version,
        prompt_tokens=len(request.prompt.token_ids),
        # Not said where it was aborted while it waited: nothing was computed then.
        cached_tokens=int(meta.get("cached_tokens", len(input_tokens(request, index)))),
        num_retractions=int(meta.get("num_retractions", 0)),
    )
    partial = request.partial(index)
    if partial is None:
        return completion
    if finish != "abort":
        text = decode_text(partial.tokens.ids + _without_stop_token(token_ids, reason))
    return append_to_partial(partial, msgspec.structs.replace(completion, text=text))


def with_distribution(completion: Completion, request: GroupRequest, sampling: SamplingParams) -> Completion:
    """The completion with the distribution that its tokens were drawn from.

    Raises ProtocolError where an earlier step drew its beginning from another one.
    """
    partial = request.partial(completion.index)
    if (
        partial
        and len(partial.tokens)
        and (partial.temperature, partial.top_p) != (sampling.temperature, sampling.top_p)
    ):
        raise ProtocolError(
            f"completion {completion.completion_id} was begun at temperature {partial.temperature} and top_p "
            f"{partial.top_p} and resumed at {sampling.temperature} and {sampling.top_p}: its tokens have no common "
            "distribution. Remedy: discard what was begun before the sampling changes"
        )
    return msgspec.structs.replace(completion, temperature=sampling.temperature, top_p=sampling.top_p)


def _without_stop_token(token_ids: list[int], reason: dict[str, Any]) -> list[int]:
    """Tokens that belong to the text: SGLang leaves out the token that was a stop."""
    return token_ids[:-1] if isinstance(reason.get("matched"), int) else token_ids


def append_to_partial(partial: Partial, completion: Completion) -> Completion:
    """Put the tokens that were decoded now behind those that were there."""
    now = [VersionRun(completion.policy_version, len(completion.tokens))] if len(completion.tokens) else []
    try:
        tokens = concatenate([partial.tokens, completion.tokens])
    except ValueError as error:
        raise ProtocolError(f"completion {completion.completion_id} cannot be resumed: {error}") from error
    return msgspec.structs.replace(
        completion,
        tokens=tokens,
        versions=join_runs([*partial.versions, *now]),
        resumed_tokens=len(partial.tokens),
    )


def join_runs(runs: list[VersionRun]) -> list[VersionRun]:
    """The same, each version once where its runs follow one another."""
    joined: list[VersionRun] = []
    for run in runs:
        if joined and joined[-1].version == run.version:
            joined[-1] = VersionRun(run.version, joined[-1].num_tokens + run.num_tokens)
        else:
            joined.append(run)
    return joined


def undecoded(request: GroupRequest, index: int, confirmed: int | None) -> Completion:
    """A completion that was aborted before its first token, with what was there of it before."""
    assert confirmed is not None
    completion = Completion(
        completion_id=build_completion_id(request.group_id, index),
        group_id=request.group_id,
        prompt_id=request.prompt.prompt_id,
        index=index,
        text="",
        finish_reason="abort",
        policy_version=confirmed,
        prompt_tokens=len(request.prompt.token_ids),
        cached_tokens=len(input_tokens(request, index)),
    )
    partial = request.partial(index)
    return append_to_partial(partial, completion) if partial else completion


def is_own_abort(reason: dict[str, Any]) -> bool:
    """Whether SGLang ended a request that it had taken, for a reason that another draw may not meet.

    Ties at the cut of top-p, or an error of its own (5xx).
    """
    if reason["type"] != "abort" or not reason.get("status_code"):
        return False
    return int(reason["status_code"]) >= 500 or str(reason.get("message", "")).startswith(MASK_ABORTS)


def check_reason(reason: dict[str, Any], what: str) -> None:
    """Raises RolloutError for an end that means that SGLang did not take the request."""
    if reason["type"] not in ("stop", "length", "abort") or reason.get("status_code"):
        raise RolloutError(f"SGLang refused {what}: {reason}")


class PromptExperts:
    """Experts of the prompts of some groups, each told once: with the first completion of the group that ends."""

    def __init__(self, of_groups: dict[str, Packed]) -> None:
        self._of_groups = of_groups
        self._told_by: dict[str, str] = {}

    def start_of(self, request: GroupRequest) -> int:
        """First position that a completion of the group is to tell of itself."""
        return len(request.prompt.token_ids) - 1 if request.group_id in self._of_groups else 0

    def add(self, completion: Completion, found: Packed) -> Completion:
        """The completion with its experts, and those of its prompt or the id of the completion that has them.

        `found` are those of its tokens, and of the rest of the prompt where that was asked of it.
        """
        own = completion.prompt_tokens - 1
        if (prompt := self._of_groups.get(completion.group_id)) is None:
            prompt, found = found.take(range(own)), found.take(range(own, len(found)))
        if len(found) != len(completion.tokens) or len(prompt) != own:
            raise RolloutError(
                f"completion {completion.completion_id} has {len(completion.tokens)} tokens after a prompt of "
                f"{completion.prompt_tokens}, and experts came for {len(found)} after {len(prompt)}"
            )
        tokens = msgspec.structs.replace(completion.tokens, experts=found)
        teller = self._told_by.setdefault(completion.group_id, completion.completion_id)
        if teller != completion.completion_id:
            return msgspec.structs.replace(completion, tokens=tokens, prompt_experts_of=teller)
        return msgspec.structs.replace(completion, tokens=tokens, prompt_experts=prompt)
