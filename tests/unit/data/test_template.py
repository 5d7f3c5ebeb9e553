"""The prompt template, to the character, and the way to token ids."""

import pytest
from transformers import PreTrainedTokenizerFast

from hybridflow.data.chat_encoding import encode_chat
from hybridflow.data.chat_template import (
    build_choice_answer,
    build_choice_prompt,
    build_follow_up,
    build_prompt,
)
from hybridflow.errors import DataError
from hybridflow.policy.tokenizer import build_tokenizer


def test_prompt_is_the_one_of_the_recipe() -> None:
    assert build_prompt("DOC", "Q?") == (
        "Please read the following text and answer the question below.\n\n<text>\nDOC\n</text>\n\nQ?\n\n"
        'Format your response as follows: "Therefore, the answer is (insert answer here)".'
    )


def test_follow_up_is_the_end_of_the_prompt() -> None:
    assert build_prompt("DOC", "Q?").endswith(f"</text>\n\n{build_follow_up('Q?')}")


def test_choice_prompt() -> None:
    assert build_choice_prompt("DOC", "Q?", ["a", "b", "c", "d"]) == (
        "Please read the following text and answer the question below.\n\n<text>\nDOC\n</text>\n\nQ?\n"
        "(A) a\n(B) b\n(C) c\n(D) d\n\n"
        'Format your response as follows: "The correct answer is (insert answer here)".'
    )
    assert build_choice_answer("B") == "The correct answer is (B)"


def test_choice_prompt_wants_four_choices() -> None:
    with pytest.raises(DataError, match="got 3"):
        build_choice_prompt("DOC", "Q?", ["a", "b", "c"])


def test_encode_chat_follows_the_template_of_the_tokenizer() -> None:
    tokenizer = build_tokenizer()
    messages = [{"role": "user", "content": "What"}]
    ask, answer = tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
    what = tokenizer.encode("What")
    assert encode_chat(tokenizer, messages) == [ask, *what, answer]
    assert encode_chat(tokenizer, messages, add_generation_prompt=False) == [ask, *what]


def test_encode_chat_without_template_is_the_plain_content() -> None:
    backend = build_tokenizer().backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    messages = [{"role": "user", "content": "One."}, {"role": "user", "content": "Two."}]
    assert tokenizer.chat_template is None
    assert tokenizer.decode(encode_chat(tokenizer, messages)) == "One.\n\nTwo."
