"""Demonstrations out of files: which text is imitated, in which order, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hybridflow.config.reward_sections import RulesSection
from hybridflow.data.demonstrations import DemonstrationSet, read_conversation
from hybridflow.data.streams import draw_indices
from hybridflow.errors import DataError
from hybridflow.policy.tokenizer import build_tokenizer
from hybridflow.rewards.registry import Registry
from tests.unit.data.families import family

TOKENIZER = build_tokenizer()
QUESTION = {"role": "user", "content": "What is the rate ?"}
DOCQA = {
    "data_source": "synth",
    "prompt": [QUESTION],
    "ability": "doc-qa",
    "reward_model": {"style": "rule", "ground_truth": "Therefore, the answer is yen."},
    "extra_info": {"index": 0},
}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_is_imitated(tmp_path: Path) -> None:
    """A conversation's assistant turns; a response before the gold answer; the gold answer."""
    conversation = {"messages": [QUESTION, {"role": "assistant", "content": "It is yen."}]}
    rows = [conversation, DOCQA | {"response": "I think it is yen."}, DOCQA, DOCQA | {"response": None}]
    found = DemonstrationSet(write(tmp_path / "a.jsonl", *rows), TOKENIZER, max_tokens=100, seed=0)
    texts = [TOKENIZER.decode(sequence.response_token_ids) for sequence in found.sequences]
    gold = "Therefore, the answer is yen.<|end|>"
    assert texts == ["It is yen.<|end|>", "I think it is yen.<|end|>", gold, gold]
    for sequence in found.sequences:
        assert TOKENIZER.decode(sequence.prompt_token_ids) == "<|user|>What is the rate ?<|assistant|>"
        assert sequence.loss_mask == [1] * len(sequence.response_token_ids)


def test_long_rows_are_named_or_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", DOCQA, DOCQA | {"response": "yen " * 50})
    with pytest.raises(
        DataError, match=r"a.jsonl, line 2, row 1: the conversation has \d+ tokens, the window .* is 40"
    ):
        DemonstrationSet(path, TOKENIZER, max_tokens=40, seed=0)
    kept = DemonstrationSet(path, TOKENIZER, max_tokens=40, seed=0, overlong="drop")
    assert (len(kept), kept.num_dropped) == (1, 1)
    with pytest.raises(DataError, match="all 2 rows are longer"):
        DemonstrationSet(path, TOKENIZER, max_tokens=2, seed=0, overlong="drop")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ([1], "got list"),
        ({"text": "x"}, "neither 'messages' .* nor 'prompt' .* found text"),
        ({"messages": []}, "column 'messages'"),
        ({"messages": [QUESTION, {"role": "assistant"}]}, r"messages\[1\]"),
        (DOCQA | {"response": 5}, "column 'response': got int"),
        (DOCQA | {"reward_model": {}}, "ground_truth"),
    ],
)
def test_malformed_rows_are_named(record: Any, said: str) -> None:
    with pytest.raises(DataError, match=f"row 7.*{said}"):
        read_conversation(record, "row 7")


def test_every_epoch_has_every_row_once_and_steps_need_no_cursor() -> None:
    """5 items, 3 a step: step 1 takes the last two of the first epoch and the first of the second."""
    drawn = [index for step in range(5) for index in draw_indices(("a", 0), 5, step, 3)]
    assert [sorted(drawn[start : start + 5]) for start in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
    assert len({tuple(drawn[start : start + 5]) for start in (0, 5, 10)}) > 1
    assert draw_indices(("a", 0), 5, 3, 3) == drawn[9:12]
    assert draw_indices(("a", 1), 50, 0, 50) != draw_indices(("a", 0), 50, 0, 50)
    assert Counter(draw_indices(("a", 0), 2, 0, 7)) in (Counter({0: 4, 1: 3}), Counter({0: 3, 1: 4}))


def test_notes_count_what_a_template_leaves_open(tmp_path: Path) -> None:
    thought, plain = "<think>\nSo.\n</think>\n\nOne.", "One."
    question = {"role": "user", "content": "Which?"}
    rows = [[plain], [thought], [thought, plain], [plain, thought]]
    lines = [[part for text in row for part in (question, {"role": "assistant", "content": text})] for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": line}) + "\n" for line in lines))
    found = DemonstrationSet(tmp_path / "rows.jsonl", family("R1-Distill present"), max_tokens=512, seed=0)
    assert (found.num_empty_thoughts, found.num_context_answers) == (2, 2)
    empty, context = found.describe()
    assert empty.startswith("2 of 4 rows answer without thinking") and context.startswith("2 earlier answers are read")
    assert DemonstrationSet(tmp_path / "rows.jsonl", family("Llama 3"), max_tokens=512, seed=0).describe() == []


def test_a_row_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    row = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": row}) + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1, row 0: sft-000000: the chat template .*roles must alt"):
        DemonstrationSet(tmp_path / "rows.jsonl", family("Mistral"), max_tokens=512, seed=0)


@pytest.mark.parametrize("column", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_in_a_column_of_their_own_are_learnt(column: str) -> None:
    answer = {"role": "assistant", "content": "One.", column: "So.\n"}
    messages = read_conversation({"messages": [QUESTION, answer]}, "row 0")
    assert messages[1]["content"] == "<think>\nSo.\n</think>\n\nOne."
    assert read_conversation({"messages": [QUESTION, answer | {column: None}]}, "row 0")[1]["content"] == "One."
    with pytest.raises(DataError, match="what an assistant thought as a string"):
        read_conversation({"messages": [QUESTION, answer | {column: ["So."]}]}, "row 0")


def test_golds_that_no_answer_can_equal_are_named_all_at_once(tmp_path: Path) -> None:
    choice = DOCQA | {"ability": "doc-mc", "data_source": "own"}
    rows = [choice | {"reward_model": {"style": "rule", "ground_truth": gold}} for gold in ("B", "E", "", "(C)", "F")]
    check = Registry(RulesSection()).find_gold_problem
    with pytest.raises(DataError) as caught:
        DemonstrationSet(write(tmp_path / "a.jsonl", *rows), TOKENIZER, max_tokens=90, seed=0, find_gold_problem=check)
    told = str(caught.value)
    assert "3 of 5 rows cannot be used" in told and "line 5, row 4: the gold answer 'F' names none of" in told
    assert "line 2, row 1: the gold answer 'E'" in told and "line 3, row 2, column 'reward_model.ground_truth'" in told


A, U, S = ({"role": role, "content": role[:1]} for role in ("assistant", "user", "system"))
HUMAN, GPT = {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}


@pytest.mark.parametrize(
    ("record", "roles"),
    [
        ({"prompt": "u", "response": "a"}, "ua"),
        ({"prompt": [S, U], "completion": [A]}, "sua"),
        ({"conversations": [HUMAN, GPT], "system": "s"}, "sua"),
        ({"conversations": [HUMAN, GPT], "system": "", "tools": "[]"}, "ua"),
        ({"messages": json.dumps([U, A]), "system": None}, "ua"),
        ({"messages": [U, A | {"weight": 1, "tool_calls": None}]}, "ua"),
    ],
)
def test_other_forms_of_a_conversation(record: dict[str, Any], roles: str) -> None:
    messages = read_conversation(record, "row 0")
    assert "".join(message["role"][0] for message in messages) == roles
    assert "".join(message["content"] for message in messages) == roles


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"messages": [U, A], "tools": [{"name": "f"}]}, "column 'tools'.*no tools are shown to the model"),
        ({"messages": [U, A | {"tool_calls": [{"name": "f"}]}]}, r"messages\[1\].tool_calls.*write the call"),
        ({"messages": [U, A | {"weight": 0}, U, A]}, r"messages\[1\].weight.*every answer is learnt"),
        ({"messages": [U, A | {"loss": False}, U, A]}, r"messages\[1\].loss.*every answer is learnt"),
        ({"messages": [S, U, A], "system": "s"}, "a system message of its own: keep one"),
        ({"messages": str([U, A])}, "write the messages as JSON"),
    ],
)
def test_what_would_be_lost_is_refused(record: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_conversation(record, "row 0")


def test_the_thought_of_a_sharegpt_message_is_learnt() -> None:
    rows = [HUMAN, GPT | {"reasoning_content": " So.\n"}]
    assert read_conversation({"conversations": rows}, "row 0")[1]["content"] == "<think>\nSo.\n</think>\n\na"
    rows = [HUMAN, GPT | {"reasoning_content": "  "}]
    assert read_conversation({"conversations": rows}, "row 0")[1]["content"] == "a"
