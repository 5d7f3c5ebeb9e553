"""The tiny tokenizer: size, one token per word, losslessness, chat template."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hybridflow.data.chat_encoding import encode_chat
from hybridflow.data.chat_template import FORMAT_INSTRUCTION, build_answer, build_prompt
from hybridflow.data.synth import SynthSpec, generate_conversations, generate_rows
from hybridflow.data.synth.easy import ATTRIBUTES
from hybridflow.policy.tokenizer import VOCAB_SIZE, build_tokenizer

TOKENIZER = build_tokenizer()
TATQA = Path(__file__).parents[3].parent / "shared" / "data" / "tatqa_docqa.jsonl"


def tokens_of(text: str) -> list[str]:
    return [TOKENIZER.decode([token]) for token in TOKENIZER.encode(text)]


def test_vocabulary_has_the_promised_size_and_no_gaps() -> None:
    assert len(TOKENIZER) == VOCAB_SIZE == 1024
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(1024))


def test_two_builds_are_equal() -> None:
    assert build_tokenizer().backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()


def test_question_and_answer_tokens() -> None:
    question = tokens_of(f"What is the currency?{FORMAT_INSTRUCTION}")
    assert question == ["What", " is", " the", " currency", "?", FORMAT_INSTRUCTION]
    assert tokens_of(build_answer("yen") + "<|end|>") == ["Therefore, the answer is", " yen", ".", "<|end|>"]
    assert tokens_of(build_answer("unknown")) == ["Therefore, the answer is", " unknown", "."]


def test_every_value_is_one_token_in_a_record_and_in_an_answer() -> None:
    for attribute, values in ATTRIBUTES.items():
        for value in values:
            assert tokens_of(f"The {attribute} is {value}.") == ["The", f" {attribute}", " is", f" {value}", "."]
            assert tokens_of(build_answer(value))[1:] == [f" {value}", "."]


def test_prompt_costs_the_document_and_nine_tokens() -> None:
    """user | opening | document | closing | What is the X ? | format instruction | assistant"""
    spec = SynthSpec(tier="easy", doc_tokens=128, num_train=20, num_test=0)
    for row in generate_rows(spec, "train", 0):
        assert len(encode_chat(TOKENIZER, row.prompt)) == 128 + 1 + 1 + 1 + 5 + 1 + 1


def test_chat_template_adds_no_begin_token_and_closes_answers() -> None:
    messages = generate_conversations(1, doc_tokens=64, num_questions=2, seed=1)[0]
    text = TOKENIZER.decode(encode_chat(TOKENIZER, messages, add_generation_prompt=False))
    first, answer, second, last = (message["content"] for message in messages)
    assert text == f"<|user|>{first}<|assistant|>{answer}<|end|><|user|>{second}<|assistant|>{last}<|end|>"
    assert TOKENIZER.eos_token == "<|end|>" and TOKENIZER.pad_token == "<|pad|>" and TOKENIZER.bos_token is None


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.text(alphabet="The yen.?,\n\t<|>/text0123456789 €¥–", max_size=80))
def test_text_near_the_template_comes_back(text: str) -> None:
    prompt = build_prompt(text, text)
    assert TOKENIZER.decode(TOKENIZER.encode(prompt)) == prompt


def test_financial_text_is_not_spelt_in_bytes() -> None:
    spec = SynthSpec(tier="hard", doc_tokens=2000, num_records=2, num_train=1, num_test=0)
    content = generate_rows(spec, "train", seed=5)[0].prompt[0]["content"]
    token_ids = TOKENIZER.encode(content)
    assert TOKENIZER.decode(token_ids) == content
    assert len(content) / len(token_ids) > 2.4  # characters per token; bytes alone give 1


def test_saved_tokenizer_loads_as_it_was(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = build_prompt("The currency is yen. Der Zins beträgt 4,5 %.", "What is the currency?")
    assert loaded.encode(text) == TOKENIZER.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    message = {"role": "user", "content": text}
    assert encode_chat(loaded, [message]) == encode_chat(TOKENIZER, [message])


@pytest.mark.skipif(not TATQA.is_file(), reason="the TAT-QA rows are not beside this checkout")
def test_real_financial_rows_come_back() -> None:
    with TATQA.open(encoding="utf-8") as file:
        contents = [json.loads(line)["prompt"][0]["content"] for line in file][:10]
    for content in contents:
        assert TOKENIZER.decode(TOKENIZER.encode(content)) == content
