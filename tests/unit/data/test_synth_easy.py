"""Easy tier: exact sizes, facts that stand in the text, disjoint and reproducible streams."""

import subprocess
import sys
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hybridflow.data.chat_template import build_answer
from hybridflow.data.streams import derive_stream
from hybridflow.data.synth import SynthSpec, generate_rows
from hybridflow.data.synth.easy import (
    ABSTENTION,
    ATTRIBUTES,
    build_question,
    check_easy_size,
    generate_document,
    list_easy_words,
)
from hybridflow.policy.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()
SPEC = SynthSpec(tier="easy", doc_tokens=128, num_train=40, num_test=40)


def test_each_value_names_its_attribute() -> None:
    values = [value.lower() for group in ATTRIBUTES.values() for value in group]
    assert len(ATTRIBUTES) == 12 and {len(group) for group in ATTRIBUTES.values()} == {12}
    assert len(set(values)) == 144
    others = {word.lower() for word in list_easy_words()} - set(values)
    assert not set(values) & (set(ATTRIBUTES) | {ABSTENTION})
    assert len(others) + len(values) == len({word.lower() for word in list_easy_words()})


@settings(max_examples=60)
@given(doc_tokens=st.integers(5, 260), num_records=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_documents_have_exactly_the_asked_tokens(doc_tokens: int, num_records: int, seed: int) -> None:
    if check_easy_size(doc_tokens, num_records):
        with pytest.raises(ValidationError):
            SynthSpec(tier="easy", doc_tokens=doc_tokens, num_records=num_records, num_train=1, num_test=1)
        return
    document, records = generate_document(derive_stream("test", seed), doc_tokens, num_records)
    assert len(TOKENIZER.encode(document)) == doc_tokens
    assert len({record.attribute for record in records}) == num_records
    for record in records:
        assert record.value in ATTRIBUTES[record.attribute]
        assert document.count(f"The {record.attribute} is ") == 1 and record.text in document


def test_row_asks_for_a_fact_of_its_document() -> None:
    for row in generate_rows(SPEC, "train", seed=1):
        content, fact = row.prompt[0]["content"], row.extra_info["facts"][0]
        document = content.split("<text>\n")[1].split("\n</text>")[0]
        assert document[fact["position"] :].startswith(fact["text"])
        assert fact["text"] == f"The {fact['name']} is {fact['value']}."
        assert f"\n\n{build_question(fact['name'])}\n\n" in content
        assert row.reward_model.ground_truth == build_answer(fact["value"])


def test_decoys_mention_values_that_no_record_states() -> None:
    decoys = stated = 0
    for row in generate_rows(SPEC, "train", seed=2):
        for sentence in row.prompt[0]["content"].split(". "):
            decoys += " for note " in sentence
            stated += " is " in sentence
    assert decoys > 10 and stated >= 8 * 40


def test_streams_are_reproducible_and_disjoint() -> None:
    train = generate_rows(SPEC, "train", seed=0)
    assert generate_rows(SPEC, "train", seed=0) == train
    assert generate_rows(SPEC.model_copy(update={"num_train": 5}), "train", seed=0) == train[:5]
    contents = {row.prompt[0]["content"] for row in train}
    for other in (generate_rows(SPEC, "test", seed=0), generate_rows(SPEC, "train", seed=1)):
        assert not contents & {row.prompt[0]["content"] for row in other}


def test_another_process_draws_the_same() -> None:
    code = "from hybridflow.data.streams import derive_stream; print(derive_stream('a', 1, 'b').getrandbits(64))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    assert outputs == {str(derive_stream("a", 1, "b").getrandbits(64))}


def test_stream_names_do_not_run_together() -> None:
    assert derive_stream("a", "b").random() != derive_stream("ab").random()
    assert derive_stream(1, 11).random() != derive_stream(11, 1).random()


@pytest.mark.parametrize(("doc_tokens", "num_records"), [(39, 8), (44, 8), (128, 13), (45, 8)])
def test_impossible_sizes_are_refused_with_a_remedy(doc_tokens: int, num_records: int) -> None:
    with pytest.raises(ValidationError, match=r"use 40, or 46|num_records must be 1"):
        SynthSpec(tier="easy", doc_tokens=doc_tokens, num_records=num_records, num_train=1, num_test=1)


def test_unknown_setting_is_refused() -> None:
    with pytest.raises(ValidationError, match="num_trian"):
        SynthSpec.model_validate({"tier": "easy", "doc_tokens": 64, "num_trian": 3, "num_train": 1, "num_test": 1})


def test_lengths_of_training_documents_are_spread_where_a_shortest_one_is_given() -> None:
    """Test rows are all of the longest; without a shortest one, rows are what they were."""
    spread = SPEC.model_copy(update={"min_doc_tokens": 64, "num_train": 400})

    def lengths(split: Literal["train", "test"]) -> list[int]:
        texts = [str(row.prompt[0]["content"]) for row in generate_rows(spread, split, 0)]
        return [len(TOKENIZER.encode(text.partition("<text>\n")[2].partition("\n</text>")[0])) for text in texts]

    train = lengths("train")
    assert (min(train), max(train)) == (64, 128) and abs(sum(train) / 400 - 96) < 3
    assert set(lengths("test")) == {128}
    with pytest.raises(ValidationError, match="min_doc_tokens=129 is above doc_tokens=128: lower the first"):
        SynthSpec(tier="easy", doc_tokens=128, min_doc_tokens=129, num_train=1, num_test=1)
    with pytest.raises(ValidationError, match=r"doc_tokens=41 does not fit 8 records: use 40, or 46 and more"):
        SynthSpec(tier="easy", doc_tokens=128, min_doc_tokens=40, num_train=1, num_test=1)
