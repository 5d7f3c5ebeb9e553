"""Answers of SGLang, also for a completion that is continued."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hybridflow.errors import RolloutError
from hybridflow.rollout.engine.sglang_messages import (
    MASK_ABORTS,
    MAX_MASK_TOKENS,
    completion_seed,
    input_tokens,
    is_own_abort,
    to_completion,
    to_sglang,
    undecoded,
)
from hybridflow.types import Partial, Ragged, SamplingParams, TokenColumns, VersionRun
from tests.builders import build_prompt, build_request

PROMPT = build_prompt(token_ids=[1, 2])
PARTIAL = Partial(index=1, tokens=TokenColumns(ids=[7, 8], rollout_logprobs=[-7.0, -8.0]), versions=[VersionRun(3, 2)])
REQUEST = build_request(PROMPT, 2, partials=[PARTIAL])


def output(token_ids: list[int], reason: dict[str, Any], **meta: Any) -> dict[str, Any]:
    info = {
        "finish_reason": reason,
        "weight_version": "4",
        "output_token_logprobs": [(-float(token), token, None) for token in token_ids],
        "cached_tokens": 1,
    }
    return {"output_ids": token_ids, "text": "of this request", "meta_info": info | meta}


def decode(token_ids: list[int]) -> str:
    return " ".join(map(str, token_ids))


def test_a_resumed_completion_is_whole_and_knows_who_decoded_what() -> None:
    completion = to_completion(REQUEST, 1, output([9, 5], {"type": "stop", "matched": 5}), 4, decode)
    assert (completion.token_ids, completion.tokens.rollout_logprobs) == ([7, 8, 9, 5], [-7.0, -8.0, -9.0, -5.0])
    assert completion.text == "7 8 9"  # the stop token is no text
    assert completion.versions == [VersionRun(3, 2), VersionRun(4, 2)]
    assert (completion.policy_version, completion.resumed_tokens, completion.prompt_tokens) == (4, 2, 2)


def test_what_is_not_resumed_has_the_engines_text_and_one_version() -> None:
    completion = to_completion(REQUEST, 0, output([9, 5], {"type": "length"}), 4, decode)
    assert (completion.text, completion.versions, completion.version_runs) == (
        "of this request",
        [],
        [VersionRun(4, 2)],
    )


def test_of_an_aborted_completion_the_last_token_is_not_kept() -> None:
    """SGLang does not look whether it was the end."""
    aborted = to_completion(REQUEST, 1, output([9, 5], {"type": "abort", "message": "Aborted"}), 4, decode)
    assert (aborted.token_ids, aborted.finish_reason, aborted.text) == ([7, 8, 9], "abort", "")
    assert aborted.versions == [VersionRun(3, 2), VersionRun(4, 1)]
    again = to_completion(REQUEST, 1, output([9], {"type": "abort", "message": "Aborted"}), 4, decode)
    assert (again.token_ids, again.versions) == (PARTIAL.tokens.ids, PARTIAL.versions)


def test_aborted_while_it_waited() -> None:
    """SGLang says nothing then of logprobs and cache."""
    meta = {"finish_reason": {"type": "abort", "message": "Abort in waiting queue"}, "weight_version": "4"}
    answer = {"output_ids": [], "text": "", "meta_info": meta}
    completion = to_completion(REQUEST, 1, answer, 4, decode)
    assert completion == undecoded(REQUEST, 1, 4)
    assert completion.prompt_tokens + completion.resumed_tokens - completion.cached_tokens == 0  # nothing was computed


def test_what_the_engine_is_given() -> None:
    sampling = SamplingParams(temperature=1.0, max_new_tokens=10)
    assert input_tokens(REQUEST, 0) == [1, 2]
    assert input_tokens(REQUEST, 1) == [1, 2, 7, 8]
    assert to_sglang(sampling, 5)["max_new_tokens"] == 10
    assert to_sglang(sampling, 5, 2)["max_new_tokens"] == 8
    assert "top_k" not in to_sglang(sampling, 5)
    narrow = msgspec.structs.replace(sampling, returns_sampling_mask=True)
    assert to_sglang(narrow, 5)["top_k"] == MAX_MASK_TOKENS  # SGLang tells of no more
    assert "ignore_eos" not in to_sglang(sampling, 5)
    assert to_sglang(msgspec.structs.replace(sampling, ignores_end=True), 5)["ignore_eos"] is True


def narrow_output(token_ids: list[int], mask: list[list[int]], reason: dict[str, Any]) -> dict[str, Any]:
    behaviour = [-0.5] * len(mask)
    return output(token_ids, reason, output_token_sampling_mask=mask, output_token_sampling_logprobs=behaviour)


def test_what_could_have_been_drawn_comes_with_the_probabilities_over_it() -> None:
    answer = narrow_output([9, 5], [[9, 3], [5]], {"type": "stop", "matched": 5})
    completion = to_completion(REQUEST, 0, answer, 4, decode, with_sampling_mask=True)
    assert completion.tokens.sampling_mask == Ragged([2, 1], [9, 3, 5])
    assert completion.tokens.rollout_logprobs == [-0.5, -0.5]


def test_the_sampling_mask_of_a_resumed_completion_is_that_of_all_its_tokens() -> None:
    partial = msgspec.structs.replace(
        PARTIAL, tokens=msgspec.structs.replace(PARTIAL.tokens, sampling_mask=Ragged([1, 3], [7, 8, 1, 2]))
    )
    request = msgspec.structs.replace(REQUEST, partials=[partial])
    answer = narrow_output([9, 5], [[9, 3], [5]], {"type": "abort", "message": "Aborted"})
    completion = to_completion(request, 1, answer, 4, decode, with_sampling_mask=True)
    assert completion.token_ids == [7, 8, 9]
    assert completion.tokens.sampling_mask == Ragged([1, 3, 2], [7, 8, 1, 2, 9, 3])


def test_tokens_without_a_sampling_mask_are_an_error() -> None:
    with pytest.raises(RolloutError, match=r"has 2 tokens, and SGLang says of 1 .* set rollout.top_p = 1"):
        to_completion(REQUEST, 0, narrow_output([9, 5], [[9]], {"type": "length"}), 4, decode, with_sampling_mask=True)


@pytest.mark.parametrize(
    ("reason", "own"),
    [
        ({"type": "stop", "matched": 5}, False),
        ({"type": "abort", "message": "Aborted"}, False),  # asked for
        ({"type": "abort", "message": f"{MASK_ABORTS[0]} --sampling-mask-max-tokens=9", "status_code": 400}, True),
        ({"type": "abort", "message": "The sampling backend selected a token outside", "status_code": 500}, True),
        ({"type": "abort", "message": "Request running timeout reached.", "status_code": 503}, True),
        ({"type": "abort", "message": "Input length exceeds the context", "status_code": 400}, False),
    ],
)
def test_what_sglang_aborts_by_itself_may_be_drawn_anew(reason: dict[str, Any], own: bool) -> None:
    assert is_own_abort(reason) is own


def test_a_completion_that_is_drawn_anew_has_another_seed() -> None:
    assert completion_seed(1, "g-c00") == completion_seed(1, "g-c00", 0)
    assert len({completion_seed(1, "g-c00", num_aborts) for num_aborts in range(4)}) == 4
