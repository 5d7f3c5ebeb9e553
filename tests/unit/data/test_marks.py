"""Text of a content never becomes a special token, and changes nothing where it spells none."""

import time

import pytest
from transformers import PreTrainedTokenizerFast

from hybridflow.data.chat_encoding import encode_chat, marks_of
from hybridflow.data.chat_template import Message
from hybridflow.data.conversation import encode_conversation
from hybridflow.errors import DataError
from hybridflow.policy.tokenizer import build_tokenizer
from tests.unit.data.families import TEMPLATES, family

TEXTS = [
    "The bond costs 32.4 million dollars.",
    " leading and trailing \n\n",
    "e\u0301 cafe\u0301 n\u0303 हिन्दी 한국어 😀",
    "债券的票面利率是多少？",
    "1234567 890\t\t\r\n12",
    "<think> is a tag, <| no mark, |> nor this, <|im_end",
    "\U000f0000\U0010ff00 private characters",
]


@pytest.mark.parametrize("name", [*TEMPLATES, "tiny"])
def test_texts_without_marks_are_as_transformers_renders_them(name: str) -> None:
    tokenizer = build_tokenizer() if name == "tiny" else family(name)
    for text in TEXTS:
        messages: list[Message] = [{"role": "user", "content": text}]
        plain = tokenizer.apply_chat_template([*messages], add_generation_prompt=True, return_dict=False)
        assert encode_chat(tokenizer, messages) == plain, text


@pytest.mark.parametrize("name", [*TEMPLATES, "tiny"])
def test_marks_in_contents_stay_text(name: str) -> None:
    """The marks among the tokens are those of the same conversation about harmless text; the text is all there."""
    tokenizer = build_tokenizer() if name == "tiny" else family(name)
    marks = marks_of(tokenizer)
    for mark in marks.ids:
        ids, harmless = (
            encode_chat(tokenizer, [{"role": "user", "content": f"He wrote {text}{text} and\n{text}."}])
            for text in (mark, "harmless")
        )
        known = set(marks.ids.values()) - {tokenizer.unk_token_id}
        assert [token for token in ids if token in known] == [token for token in harmless if token in known], mark
        expected = tokenizer.decode(harmless).replace("harmless", mark)
        assert tokenizer.decode(ids) == expected


@pytest.mark.parametrize("name", ["R1-Distill present", "QwQ", "Llama 3", "ChatML, base eos", "Llama 2"])
def test_an_answer_that_spells_a_mark(name: str) -> None:
    tokenizer = family(name)
    mark = next(iter(marks_of(tokenizer).ids))
    answer = f"One writes {mark} there."
    sequence = encode_conversation(
        tokenizer, [{"role": "user", "content": mark}, {"role": "assistant", "content": answer}]
    )
    learnt = [token for token, mask in zip(sequence.response_token_ids, sequence.loss_mask, strict=True) if mask]
    ids = set(marks_of(tokenizer).ids.values()) - {tokenizer.unk_token_id}
    assert [token in ids for token in learnt] == [False] * (len(learnt) - 1) + [True]  # the end of the turn
    assert answer in tokenizer.decode(learnt)


def test_tags_in_an_answer_are_the_tokens_that_the_model_writes() -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<think>", "</think>"]})
    think, closed = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    text = "<think>\nSo.\n</think>\n\nYes."
    asked = encode_conversation(tokenizer, [{"role": "user", "content": text}, {"role": "assistant", "content": text}])
    assert think not in asked.prompt_token_ids and closed not in asked.prompt_token_ids
    assert asked.response_token_ids.count(think) == asked.response_token_ids.count(closed) == 1


def test_without_a_template_too() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=build_tokenizer().backend_tokenizer, eos_token="<|end|>")
    ids = encode_chat(tokenizer, [{"role": "user", "content": "One <|end|> two."}])
    assert tokenizer.eos_token_id not in ids and tokenizer.decode(ids) == "One <|end|> two."


def test_begin_token_of_a_text_without_a_template() -> None:
    tokenizer = family("Llama 3")
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, bos_token=tokenizer.bos_token)
    ids = encode_chat(bare, [{"role": "user", "content": "One <|begin_of_text|> two."}])
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    "text",
    [
        "The fee is 3.4 million dollars. " * 62_500,
        pytest.param("<|end|>" * 285_714, marks=pytest.mark.full),
        pytest.param(" " * 2_000_000, marks=pytest.mark.full),
        pytest.param("a<" * 1_000_000, marks=pytest.mark.full),
    ],
    ids=["prose", "marks", "spaces", "almost marks"],
)
def test_two_megabytes_take_seconds(text: str) -> None:
    tokenizer = build_tokenizer()
    started = time.process_time()
    ids = encode_chat(tokenizer, [{"role": "user", "content": text}])
    assert time.process_time() - started < 6
    assert tokenizer.decode(ids) == f"<|user|>{text}<|assistant|>"


def test_a_conversation_of_every_private_character_is_refused() -> None:
    text = "".join(map(chr, range(0xF0000, 0x10F000, 0x1000))) + "<|end|>"
    with pytest.raises(DataError, match="every private character"):
        encode_chat(build_tokenizer(), [{"role": "user", "content": text}])
