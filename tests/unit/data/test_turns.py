"""Words that are learnt under the chat templates of the families, one by one."""

import pytest

from hybridflow.data.chat_encoding import encode_chat
from hybridflow.data.chat_template import Message
from hybridflow.data.conversation import encode_conversation, split_conversation
from hybridflow.errors import DataError
from tests.unit.data.families import family

THOUGHT = "<think>\n3.2 less 1.1 is 2.1.\n</think>\n\nIt is 2.1%."
PLAIN = "It is 2.1%."
QUESTION: Message = {"role": "user", "content": "What?"}
EOS = "<｜end▁of▁sentence｜>"
END = "<|im_end|>"
CASES = [
    # family, answer, the end of the prompt, what is learnt, answers whose thought is closed empty
    ("R1-Distill present", THOUGHT, "<｜Assistant｜><think>\n", THOUGHT.removeprefix("<think>\n") + EOS, 0),
    ("R1-Distill present", PLAIN, "<｜Assistant｜><think>\n", f"\n</think>\n\n{PLAIN}{EOS}", 1),
    # as such a model's completion is stored: its prompt had the opening
    ("R1-Distill present", "So.\n</think>\n\n2.1", "<｜Assistant｜><think>\n", f"So.\n</think>\n\n2.1{EOS}", 0),
    ("R1-Distill older", THOUGHT, "<｜Assistant｜>", THOUGHT + EOS, 0),
    ("R1-Distill older", PLAIN, "<｜Assistant｜>", PLAIN + EOS, 0),
    ("QwQ", THOUGHT, "assistant\n<think>\n", THOUGHT.removeprefix("<think>\n") + END, 0),
    ("QwQ", PLAIN, "assistant\n<think>\n", f"\n</think>\n\n{PLAIN}{END}", 1),
    ("Qwen3", THOUGHT, "assistant\n", THOUGHT + END, 0),
    ("Qwen3", PLAIN, "assistant\n", f"<think>\n\n</think>\n\n{PLAIN}{END}", 0),
    ("Qwen3 thinking", THOUGHT, "assistant\n<think>\n", THOUGHT.removeprefix("<think>\n") + END, 0),
    ("Qwen3 thinking", PLAIN, "assistant\n<think>\n", f"\n</think>\n\n{PLAIN}{END}", 0),
    ("Qwen3 silent", PLAIN, "<think>\n\n</think>\n\n", PLAIN + END, 0),
    ("Llama 3", PLAIN + "\n", "assistant<|end_header_id|>\n\n", f"{PLAIN}<|eot_id|>", 0),
    ("Llama 3", THOUGHT, "assistant<|end_header_id|>\n\n", f"{THOUGHT}<|eot_id|>", 0),
    ("ChatML, base eos", PLAIN, "assistant\n", PLAIN + END, 0),
    ("ChatML, base eos", "n", "assistant\n", "n" + END, 0),
    ("Llama 2", PLAIN, "[/INST]", f" {PLAIN} </s>", 0),
    ("Mistral", PLAIN, "[/INST]", f"{PLAIN}</s>", 0),
]


@pytest.mark.parametrize(("name", "answer", "prompt_end", "learnt", "num_empty"), CASES)
def test_what_the_model_has_to_write_after_the_generation_prompt(
    name: str, answer: str, prompt_end: str, learnt: str, num_empty: int
) -> None:
    tokenizer = family(name)
    question: list[Message] = [{"role": "user", "content": "A report.\n\nWhat is the rate?"}]
    messages: list[Message] = [*question, {"role": "assistant", "content": answer}]
    conversation = split_conversation(tokenizer, messages)
    assert "".join(segment.text for segment in conversation.segments if segment.is_learnt) == learnt
    assert conversation.segments[0].text.endswith(prompt_end)
    assert (conversation.num_empty_thoughts, conversation.num_context_answers) == (num_empty, 0)
    sequence = encode_conversation(tokenizer, messages)
    assert sequence.prompt_token_ids == encode_chat(tokenizer, question)  # the very tokens that an engine is given
    tokens = [token for token, mask in zip(sequence.response_token_ids, sequence.loss_mask, strict=True) if mask]
    assert tokenizer.decode(tokens).strip() == learnt.strip()  # sentencepiece drops a space at the start of a text


@pytest.mark.parametrize(
    ("name", "num_learnt"),
    [
        ("R1-Distill present", 1),
        ("R1-Distill older", 1),
        ("QwQ", 1),
        ("Qwen3", 1),
        ("Llama 3", 3),
        ("ChatML, base eos", 3),
        ("Llama 2", 3),
        ("Mistral", 3),
    ],
)
def test_of_several_answers_those_are_learnt_that_later_turns_leave_as_they_were(name: str, num_learnt: int) -> None:
    tokenizer = family(name)
    messages: list[Message] = []
    for turn in range(3):
        messages += [{"role": "user", "content": f"Question {turn}?"}, {"role": "assistant", "content": THOUGHT}]
    conversation = split_conversation(tokenizer, messages)
    learnt = [segment.text for segment in conversation.segments if segment.is_learnt]
    assert len(learnt) == num_learnt and conversation.num_context_answers == 3 - num_learnt
    assert all("less 1.1" in text and text.rstrip().endswith((END, EOS, "</s>", "<|eot_id|>")) for text in learnt)
    ids: list[int] = []
    turn = 3 - num_learnt
    for segment in conversation.segments:  # each answer stands behind the tokens that the model is given for it
        if segment.is_learnt:
            assert ids == encode_chat(tokenizer, messages[: 2 * turn + 1])
            turn += 1
        ids += segment.token_ids


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("Qwen3 silent", THOUGHT, "has closed that before it"),
        ("R1-Distill present", "<think>\nAnd so on", "never closes it"),
        ("ChatML, base eos", " \n", "the answer is empty"),
    ],
)
def test_answers_that_cannot_follow_the_prompt(name: str, answer: str, message: str) -> None:
    messages: list[Message] = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": answer}]
    with pytest.raises(DataError, match=message):
        encode_conversation(family(name), messages)


@pytest.mark.parametrize(
    ("name", "role"),
    [("R1-Distill older", "developer"), ("QwQ", "developer"), ("Qwen3", "tool"), ("R1-Distill present", "tool")],
)
def test_a_template_that_leaves_a_message_out_is_an_error_of_the_row(name: str, role: str) -> None:
    """A system message would be lost without a word."""
    messages: list[Message] = [{"role": role, "content": "Be brief."}, {"role": "user", "content": "What?"}]
    with pytest.raises(DataError, match=f"leaves out what message 0 says, of the role {role}"):
        encode_chat(family(name), messages)
    with pytest.raises(DataError, match="leaves out what message 0 says"):
        encode_conversation(family(name), [*messages, {"role": "assistant", "content": "So."}])


def test_a_special_token_in_the_form_of_a_tag_ends_the_turn() -> None:
    conversation = split_conversation(family("Gemma"), [QUESTION, {"role": "assistant", "content": PLAIN}])
    assert [segment.text for segment in conversation.segments[-2:]] == [PLAIN + "<end_of_turn>", "\n"]
    assert conversation.num_endless_answers == 0


def test_answers_without_an_end_are_counted() -> None:
    conversation = split_conversation(family("no end"), [QUESTION, {"role": "assistant", "content": PLAIN}])
    assert [segment.text for segment in conversation.segments if segment.is_learnt] == [PLAIN + "\n\n"]
    assert conversation.num_endless_answers == 1


@pytest.mark.parametrize(
    ("name", "roles", "message"),
    [
        ("Mistral", ["system", "user", "assistant"], "roles system, user: Conversation roles must alternate"),
        ("Llama 2", ["user", "user", "assistant"], "roles user, user: Conversation roles must alternate"),
    ],
)
def test_a_template_that_refuses_is_an_error_of_the_row(name: str, roles: list[str], message: str) -> None:
    messages: list[Message] = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(DataError, match=message):
        encode_conversation(family(name), messages)
    with pytest.raises(DataError, match=message):
        encode_chat(family(name), messages[:-1])
