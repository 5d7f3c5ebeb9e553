"""Middle truncation of over-long prompts: what stays, and what cannot be cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridflow.data.chat_encoding import encode_chat
from hybridflow.data.chat_template import build_choice_prompt, build_prompt
from hybridflow.data.dataset import PromptDataset
from hybridflow.data.schema import RewardModel, Row
from hybridflow.data.truncation import truncate_middle
from hybridflow.errors import DataError
from hybridflow.policy.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()
QUESTION = "What is the price of the bread?"


def make_row(*contents: str) -> Row:
    roles = ["user", "assistant"]
    return Row(
        data_source="synth_easy",
        prompt=[{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)],
        ability="doc-qa",
        reward_model=RewardModel(style="rule", ground_truth="yen"),
        extra_info={},
    )


def num_tokens(row: Row) -> int:
    return len(encode_chat(TOKENIZER, row.prompt))


def test_halves_of_the_document_stay_and_all_else_is_whole() -> None:
    document = "".join(f"{number % 7}" for number in range(92))
    assert len(TOKENIZER.encode(document, add_special_tokens=False)) == 92
    row = make_row(build_prompt(document, QUESTION))
    around = num_tokens(make_row(build_prompt("", QUESTION)))
    shorter, token_ids = truncate_middle(TOKENIZER, row, around + 21)
    kept = f"{document[:11]}{document[-10:]}"  # of 21 tokens the first half is the larger one
    assert shorter.prompt[0]["content"] == build_prompt(kept, QUESTION)
    assert token_ids == encode_chat(TOKENIZER, shorter.prompt) and len(token_ids) == around + 21
    assert shorter.reward_model == row.reward_model


WORDS = st.lists(st.text("abc1\nÄ漢€", min_size=1, max_size=6), min_size=40, max_size=80)


@settings(max_examples=40)
@given(words=WORDS, room=st.integers(10, 60))
def test_any_text_fits_afterwards_and_loses_its_middle_alone(words: list[str], room: int) -> None:
    document = " ".join(words)
    row = make_row(build_prompt(document, QUESTION))
    limit = num_tokens(make_row(build_prompt("", QUESTION))) + room
    if num_tokens(row) <= limit:
        return
    shorter, token_ids = truncate_middle(TOKENIZER, row, limit)
    assert len(token_ids) <= limit
    before, after = build_prompt("\0", QUESTION).split("\0")
    content = shorter.prompt[0]["content"]
    assert content.startswith(before) and content.endswith(after)
    kept = content[len(before) : len(content) - len(after)]
    assert any(document.startswith(kept[:cut]) and document.endswith(kept[cut:]) for cut in range(len(kept) + 1))


def test_choices_behind_the_document_stay() -> None:
    row = make_row(build_choice_prompt("bread " * 300, QUESTION, ["1", "2", "3", "4"]))
    shorter, _ = truncate_middle(TOKENIZER, row, num_tokens(row) - 200)
    tail = f"</text>\n\n{QUESTION}\n(A) 1\n(B) 2\n(C) 3\n(D) 4"
    assert tail in shorter.prompt[0]["content"]


def test_of_several_turns_the_longest_document_is_cut() -> None:
    row = make_row(build_prompt("bread " * 200, "One?"), "Yes.", build_prompt("coin", "Two?"))
    shorter, _ = truncate_middle(TOKENIZER, row, num_tokens(row) - 100)
    assert shorter.prompt[1:] == row.prompt[1:] and len(shorter.prompt[0]["content"]) < len(row.prompt[0]["content"])


@pytest.mark.parametrize(
    ("content", "limit", "told"),
    [
        ("bread " * 100, 50, r"no user message has a document between <text> and </text>.*Remedy: mark the document"),
        (
            build_prompt("bread", QUESTION * 20),
            40,
            r"tokens without its document.*limit max_prompt_tokens is 40.*Remedy",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused_with_its_row(content: str, limit: int, told: str) -> None:
    with pytest.raises(DataError, match=rf"(?s)data set 'toy', row 1 \(synth_easy\): .*{told}"):
        PromptDataset("toy", [make_row("the"), make_row(content)], TOKENIZER, limit, overlong="truncate_middle")


def test_cut_rows_are_counted_and_keep_their_number() -> None:
    rows = [make_row(build_prompt("bread " * number, QUESTION)) for number in (1, 400, 2)]
    dataset = PromptDataset("toy", rows, TOKENIZER, num_tokens(rows[0]) + 20, overlong="truncate_middle")
    assert [prompt.prompt_id for prompt in dataset.prompts] == ["toy-000000", "toy-000001", "toy-000002"]
    assert (dataset.num_truncated, dataset.num_dropped) == (1, 0)
    assert len(dataset.prompts[1].token_ids) == num_tokens(rows[0]) + 20
