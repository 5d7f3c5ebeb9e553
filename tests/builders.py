"""The big records of a step, with defaults that suit most tests; any field is given by its name.

A completion belongs to a request, to `build_request()` where none is given, so that ids and the length of the prompt
agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from hybridflow.types import (
    Completion,
    Group,
    GroupRequest,
    Prompt,
    Scored,
    ScoredCompletion,
    TokenColumns,
    Unknown,
    Verdict,
)
from hybridflow.wire.messages import build_completion_id

Said = Verdict | float | None
"""A verdict, the reward of one, or None where none was reached."""


def build_prompt(prompt_id: str = "p", **fields: Any) -> Prompt:
    """A prompt of one token whose right answer is yen."""
    defaults = {"token_ids": [1], "data_source": "s", "ability": "doc-qa", "ground_truth": "yen"}
    return Prompt(prompt_id=prompt_id, **(defaults | fields))


def build_request(
    prompt: Prompt | None = None, num_completions: int = 1, *, group_id: str = "g", **fields: Any
) -> GroupRequest:
    """Asks for completions of `build_prompt()` or of this prompt."""
    return GroupRequest(group_id=group_id, prompt=prompt or build_prompt(), num_completions=num_completions, **fields)


def build_completion(
    request: GroupRequest | None = None, index: int = 0, version: int = 0, **fields: Any
) -> Completion:
    """A right answer of two tokens, ended by the policy, to a request; `version` is that of the weights."""
    request = request or build_request()
    defaults = {
        "tokens": TokenColumns(ids=[5, 6], rollout_logprobs=[-0.5, -0.25]),
        "text": "The answer is yen.",
        "finish_reason": "stop",
        "prompt_id": request.prompt.prompt_id,
        "prompt_tokens": len(request.prompt.token_ids),
        "cached_tokens": 0,
        "temperature": 1.0,
    }
    return Completion(
        completion_id=build_completion_id(request.group_id, index),
        group_id=request.group_id,
        index=index,
        policy_version=version,
        **(defaults | fields),
    )


def build_verdict(value: float | None) -> Verdict:
    """With this reward; None: unknown."""
    if value is None:
        return Unknown(why="by the test")
    return Scored(value=value, rule="fake", extracted="", why="by the test")


def build_scored(completion: Completion | None = None, said: Said = 1.0, scored_by: str = "fake") -> ScoredCompletion:
    """A completion and what was said of it."""
    verdict = build_verdict(said) if said is None or isinstance(said, float) else said
    return ScoredCompletion(completion=completion or build_completion(), verdict=verdict, scored_by=scored_by)


def build_group(request: GroupRequest, said: Sequence[Said], version: int = 0) -> Group:
    """The group of a request, its members in order, of whom this was said."""
    members = [build_scored(build_completion(request, index, version), one) for index, one in enumerate(said)]
    return Group(group_id=request.group_id, prompt=request.prompt, members=members)


def with_completion(member: ScoredCompletion, **fields: Any) -> ScoredCompletion:
    """The same verdict on a completion in which these fields are others."""
    changed = msgspec.structs.replace(member.completion, **fields)
    return ScoredCompletion(completion=changed, verdict=member.verdict, scored_by=member.scored_by)
