"""Warm-up conversations, and which of their tokens are learnt."""

import pytest

from hybridflow.data.chat_encoding import encode_chat
from hybridflow.data.chat_template import FORMAT_INSTRUCTION, Message
from hybridflow.data.conversation import encode_conversation, split_conversation
from hybridflow.data.synth import generate_conversations
from hybridflow.data.synth.easy import build_question
from hybridflow.errors import ConfigError, DataError
from hybridflow.policy.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()


def answers_of(messages: list[Message]) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "assistant"]


def test_answers_stand_in_the_document() -> None:
    for messages in generate_conversations(20, doc_tokens=64, num_questions=5, seed=4):
        assert [message["role"] for message in messages] == ["user", "assistant"] * 5
        document = messages[0]["content"].split("<text>\n")[1].split("\n</text>")[0]
        assert len(TOKENIZER.encode(document)) == 64
        for turn in range(5):
            question = messages[2 * turn]["content"].split("</text>\n\n")[-1]
            attribute = question.removeprefix("What is the ").split("?")[0]
            assert question == build_question(attribute) + FORMAT_INSTRUCTION
            value = answers_of(messages)[turn].removeprefix("Therefore, the answer is ").rstrip(".")
            assert f"The {attribute} is {value}." in document


@pytest.mark.parametrize("fraction", [0.0, 0.7, 1.0])
def test_share_of_abstentions(fraction: float) -> None:
    conversations = generate_conversations(100, doc_tokens=64, abstain_fraction=fraction, seed=0)
    answers = [answer for messages in conversations for answer in answers_of(messages)]
    share = answers.count("Therefore, the answer is unknown.") / len(answers)
    assert len(answers) == 800 and share == pytest.approx(fraction, abs=0.05)


def test_a_stream_can_be_made_in_pieces() -> None:
    whole = generate_conversations(6, doc_tokens=64, seed=7)
    assert generate_conversations(2, doc_tokens=64, seed=7, first=4) == whole[4:]
    assert generate_conversations(6, doc_tokens=64, seed=8) != whole


@pytest.mark.parametrize("bad", [{"abstain_fraction": 1.1}, {"num_questions": 0}, {"doc_tokens": 41}])
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        generate_conversations(**{"num": 1, "doc_tokens": 64, **bad})  # pyright: ignore[reportArgumentType]


def test_loss_falls_on_answers_and_their_end_alone() -> None:
    messages = generate_conversations(1, doc_tokens=64, num_questions=3, seed=2)[0]
    sequence = encode_conversation(TOKENIZER, messages, "warmup-000000")
    assert sequence.sequence_id == "warmup-000000"
    assert sequence.prompt_token_ids == encode_chat(TOKENIZER, messages[:1])
    whole = sequence.prompt_token_ids + sequence.response_token_ids
    assert whole == encode_chat(TOKENIZER, messages, add_generation_prompt=False)
    assert len(sequence.loss_mask) == len(sequence.response_token_ids)
    learnt = [token for token, mask in zip(sequence.response_token_ids, sequence.loss_mask, strict=True) if mask]
    assert TOKENIZER.decode(learnt) == "".join(f"{answer}<|end|>" for answer in answers_of(messages))
    # answer: phrase, value, full stop, end; then user mark, five words, instruction and assistant mark
    assert sequence.loss_mask == [1] * 4 + ([0] * 8 + [1] * 4) * 2


def test_what_a_template_puts_after_the_end_token_is_not_learnt() -> None:
    tokenizer = build_tokenizer()
    assert isinstance(tokenizer.chat_template, str)
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|end|>'", "'<|end|>\\n'")
    messages: list[Message] = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "É yen"},
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "zinc"},
    ]
    sequence = encode_conversation(tokenizer, messages)
    learnt = [token for token, mask in zip(sequence.response_token_ids, sequence.loss_mask, strict=True) if mask]
    assert tokenizer.decode(learnt) == "É yen<|end|>zinc<|end|>"
    assert sequence.loss_mask[-1] == 0


def test_answers_that_a_template_rewrites_later_are_only_read() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|assistant|>' if m.role == 'assistant' else '<|user|>' }}"
        "{{ m.content if loop.last or m.role == 'user' else m.content[:3] }}"
        "{{ '<|end|>' if m.role == 'assistant' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    messages = generate_conversations(1, doc_tokens=64, num_questions=2)[0]
    sequence = encode_conversation(tokenizer, messages)
    assert sequence.prompt_token_ids == encode_chat(tokenizer, messages[:-1])
    assert TOKENIZER.decode(sequence.response_token_ids) == f"{messages[-1]['content']}<|end|>"
    assert set(sequence.loss_mask) == {1}
    assert split_conversation(tokenizer, messages).num_context_answers == 1


@pytest.mark.parametrize("roles", [[], ["user"], ["assistant"], ["user", "assistant", "user"]])
def test_conversation_must_end_with_an_answer(roles: list[str]) -> None:
    with pytest.raises(DataError, match="from a user message"):
        encode_conversation(TOKENIZER, [{"role": role, "content": "x"} for role in roles])


def test_tokenizer_without_template_is_refused() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        encode_conversation(tokenizer, generate_conversations(1, doc_tokens=64)[0])


@pytest.mark.parametrize("num_questions", [3, 8, 19])
def test_no_record_is_asked_about_again_before_all_have_been(num_questions: int) -> None:
    for messages in generate_conversations(5, doc_tokens=64, num_questions=num_questions, seed=1):
        asked = [message["content"].split("</text>\n\n")[-1] for message in messages if message["role"] == "user"]
        assert len(asked) == num_questions
        for start in range(0, num_questions, 8):
            one_round = asked[start : start + 8]
            assert len(set(one_round)) == len(one_round)
        assert len(set(asked)) == min(num_questions, 8)
