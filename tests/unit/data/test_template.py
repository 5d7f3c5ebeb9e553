"""The prompt template, to the character, and the way to token ids."""

import pytest
from transformers import PreTrainedTokenizerFast

from hybridflow.data.template import (
    Message,
    build_choice_answer,
    build_choice_prompt,
    build_follow_up,
    build_prompt,
    encode_chat,
    read_question,
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


@pytest.mark.parametrize(
    ("content", "question"),
    [
        (build_prompt("A long report.\n\nWhat is this?", "What is the rate?"), "What is the rate?"),
        (build_prompt("It says </text> here.", "What is\n\nthe rate?"), "What is\n\nthe rate?"),
        (build_choice_prompt("doc", "Which?", ["a", "b", "c", "d"]), "Which?\n(A) a\n(B) b\n(C) c\n(D) d"),
        ("A long report.\n\nMore of it.\n\nWhat is the rate?", "What is the rate?"),
        ("x" * 10_000, ""),
        ("What is the rate?", "What is the rate?"),
    ],
    ids=["prompt", "marks within", "choice", "no marks", "no marks, no paragraphs", "bare"],
)
def test_question_without_document_and_instruction(content: str, question: str) -> None:
    earlier: Message = {"role": "user", "content": "earlier"}
    assert read_question([earlier, {"role": "user", "content": content}]) == question


def test_question_of_a_conversation_without_a_user() -> None:
    assert read_question([{"role": "system", "content": "Be brief."}]) == ""
