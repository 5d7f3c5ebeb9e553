"""Experts in SGLang's answers, and who of a group tells those of the prompt."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from hybridflow.errors import RolloutError
from hybridflow.rollout.cpu.host_memory import allocate
from hybridflow.rollout.engine.experts import ExpertReader
from hybridflow.rollout.engine.sglang_messages import PromptExperts
from hybridflow.types import Packed, TokenColumns
from megatron_ext.hf.config import Experts
from tests.builders import build_completion, build_prompt, build_request

READER = ExpertReader(Experts(4, 2, 8, norm_topk_prob=True, layers=(True, False, True)))
"""Two experts of four per token, in the first and the third of three layers."""
ANSWER = [[[3, 1], [0, 0], [0, 2]], [[1, 0], [0, 0], [2, 3]], [[2, 1], [0, 0], [1, 0]]]
"""[3 tokens, 3 layers, 2]; SGLang says zeros of a layer without experts."""


def encoded(numbers: object) -> str:
    return base64.b64encode(np.array(numbers, dtype="<i4").tobytes()).decode()


def test_layers_with_experts_are_kept_a_byte_per_expert() -> None:
    assert READER.read(encoded(ANSWER), 3, "c") == Packed((2, 2), 1, bytes([3, 1, 0, 2, 1, 0, 2, 3, 2, 1, 1, 0]))
    assert len(READER.read(encoded(np.zeros((0, 3, 2))), 0, "c")) == 0


def test_more_than_256_experts_take_two_bytes() -> None:
    reader = ExpertReader(Experts(300, 2, 8, norm_topk_prob=True, layers=(True,)))
    assert reader.read(encoded([[[299, 5]]]), 1, "c") == Packed((1, 2), 2, b"\x2b\x01\x05\x00")


@pytest.mark.parametrize(
    ("answer", "num_tokens", "message"),
    [
        (None, 3, "does not say which experts computed c"),
        (encoded(ANSWER), 2, r"experts of c are not \(2, 3, 2\) numbers"),
        (encoded(ANSWER)[:-3], 3, r"experts of c are not \(3, 3, 2\) numbers"),
        ("not base64!", 3, "experts of c are not"),
        (encoded([[[4, 1], [0, 0], [0, 1]]]), 1, "experts of c are numbered 0 to 4, the model has 4, from 0"),
        (encoded([[[-1, 1], [0, 0], [0, 1]]]), 1, "experts of c are numbered -1 to 1"),
        (encoded([[[2, 2], [0, 0], [0, 1]]]), 1, "an expert is named twice for one token of c"),
    ],
)
def test_an_answer_that_cannot_be_replayed_is_refused(answer: str | None, num_tokens: int, message: str) -> None:
    with pytest.raises(RolloutError, match=message) as caught:
        READER.read(answer, num_tokens, "c")
    assert 'set algorithm.routing_replay = "off"' in str(caught.value)


REQUEST = build_request(build_prompt(token_ids=[1, 2, 3]), 2)
PROMPT = Packed((1, 2), 1, b"abcd")
RESPONSE = Packed((1, 2), 1, b"efgh")


def test_one_completion_of_a_group_tells_the_prompt_and_others_refer_to_it() -> None:
    prompts = PromptExperts({"g": PROMPT})
    assert prompts.start_of(REQUEST) == 2, "from the last token of the prompt on"
    first = prompts.add(build_completion(REQUEST, 1), RESPONSE)
    second = prompts.add(build_completion(REQUEST, 0), RESPONSE)
    assert (first.tokens.experts, first.prompt_experts, first.prompt_experts_of) == (RESPONSE, PROMPT, "")
    assert (second.tokens.experts, second.prompt_experts) == (RESPONSE, Packed())
    assert second.prompt_experts_of == first.completion_id


def test_a_completion_alone_tells_its_own_prompt() -> None:
    prompts = PromptExperts({})
    assert prompts.start_of(REQUEST) == 0
    alone = prompts.add(build_completion(REQUEST, 0), Packed((1, 2), 1, b"abcdefgh"))
    assert (alone.tokens.experts, alone.prompt_experts) == (RESPONSE, PROMPT)


def test_experts_of_other_tokens_are_refused() -> None:
    completion = build_completion(REQUEST, 0, tokens=TokenColumns(ids=[5], rollout_logprobs=[-1.0]))
    with pytest.raises(RolloutError, match="g-c00 has 1 tokens after a prompt of 3, and experts came for 2 after 2"):
        PromptExperts({"g": PROMPT}).add(completion, RESPONSE)


def test_memory_without_cuda_is_that_of_the_allocator() -> None:
    class Allocator:
        def allocate(self, dims: tuple[int, ...], dtype: str, device: str) -> tuple[object, ...]:
            return dims, dtype, device

    assert allocate((2, 3), dtype="int32", device="cpu", pin_memory=True, allocator=Allocator()) == (
        (2, 3),
        "int32",
        "cpu",
    )
