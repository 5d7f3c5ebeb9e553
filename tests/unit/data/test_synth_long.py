"""Long tier: gold answers computed again from the facts, facts in several documents, and lengths within the band."""

from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer
from typer.testing import CliRunner

from hybridflow.data.commands import app
from hybridflow.data.rows import load_rows
from hybridflow.data.schema import Row
from hybridflow.data.synth import SynthSpec, generate_row, generate_rows
from hybridflow.data.synth.bundle import SLACK_CHARS
from hybridflow.errors import ConfigError

SPEC = SynthSpec(tier="long", min_doc_tokens=3000, doc_tokens=6000, num_records=4, num_train=60, num_test=2)
ROWS = generate_rows(SPEC, "train", seed=11)
TINY = Path("configs/models/tiny")
REAL = SynthSpec(tier="long", min_doc_tokens=60_000, doc_tokens=120_000, num_train=1600, num_test=0)


def text_of(row: Row) -> str:
    return row.prompt[0]["content"]


def document_of(row: Row) -> str:
    return text_of(row).split("<text>\n")[1].split("\n</text>")[0]


def documents_of(row: Row) -> list[tuple[int, str]]:
    """Place and title of each."""
    return [(found.start(), found[1]) for found in re.finditer(r"(?m)^Document \d+: (.+)$", document_of(row))]


def recompute(row: Row) -> str:
    facts, formula = row.extra_info["facts"], row.extra_info["formula"]
    if formula == "copy":
        return facts[-1]["value"]
    pointers = [fact for fact in facts if fact["name"] in ("auditor", "guarantor")]
    numbers = [Decimal(fact["value"].replace(",", "")) for fact in facts if fact not in pointers]
    value = sum(numbers) if formula == "sum of the values" else numbers[0] - numbers[1]
    return str(value)


def test_gold_follows_from_the_facts() -> None:
    for row in ROWS:
        found = re.fullmatch(r"Therefore, the answer is (.+)\.", row.reward_model.ground_truth)
        assert found
        answer = found[1]
        if row.extra_info["formula"] == "copy":
            assert answer == recompute(row)
        else:
            assert Decimal(answer) == Decimal(recompute(row))


def test_facts_stand_where_they_are_said_to_and_in_several_documents() -> None:
    for row in ROWS:
        document, places = document_of(row), documents_of(row)
        held: set[int] = set()
        for fact in row.extra_info["facts"]:
            assert document[fact["position"] :].startswith(fact["text"]) and fact["value"] in fact["text"]
            held.add(max(place for place, _ in places if place < fact["position"]))
        assert len(held) == row.extra_info["hops"] >= 2


def test_a_question_leads_from_fact_to_fact() -> None:
    for row in ROWS:
        facts, question = row.extra_info["facts"], row.extra_info["question"]
        if row.extra_info["kind"] == "two_hop":
            assert facts[0]["value"] == facts[1]["subject"] and facts[1]["subject"] not in question
        elif row.extra_info["kind"] == "arithmetic":
            assert len(facts) >= 2 and all(fact["subject"] in question for fact in facts)
        else:  # each company is named by its auditor or guarantor alone
            pairs = list(zip(facts[::2], facts[1::2], strict=True))
            assert len(pairs) >= 2 and all(
                pointer["subject"] == number["subject"] and pointer["value"] in question
                and pointer["subject"] not in question
                for pointer, number in pairs
            )  # fmt: skip


def test_kinds_take_turns_and_documents_are_as_many_as_asked_for() -> None:
    assert Counter((row.extra_info["kind"], row.data_source, row.ability) for row in ROWS) == {
        ("two_hop", "synth_bundle_two_hop", "doc-qa"): 20,
        ("arithmetic", "docmath_synth_bundle", "doc-math"): 20,
        ("two_hop_arithmetic", "docmath_synth_bundle_two_hop", "doc-math"): 20,
    }
    assert {len(documents_of(row)) for row in ROWS} == {5}  # and the register
    assert len({row.extra_info["formula"] for row in ROWS}) == 3
    assert generate_rows(SPEC.model_copy(update={"num_train": 3}), "train", seed=11) == ROWS[:3]


def test_prompts_spread_over_the_band() -> None:
    lengths = sorted(len(text_of(row)) / 4 for row in ROWS)
    assert lengths[0] > 3000 and lengths[-1] <= 6000
    quarters = [sum(low < length <= low + 750 for length in lengths) for low in (3000, 3750, 4500, 5250)]
    assert min(quarters) >= 8


def test_the_third_phase_has_rows() -> None:
    lengths = [len(text_of(generate_row(REAL, "train", 0, index))) for index in (0, 800, 1599)]
    assert all(4 * 60_000 < length <= 4 * 120_000 - SLACK_CHARS for length in lengths)


def test_lengths_in_tokens_of_a_model(tmp_path: Path) -> None:
    sizes = ["--min-doc-tokens", "3500", "--doc-tokens", "7000", "--num-records", "4", "--tokenizer", str(TINY)]
    arguments = ["synth", "--tier", "long", "--output", str(tmp_path), "--num-train", "40", "--num-test", "1"]
    result = CliRunner().invoke(app, [*arguments, *sizes], catch_exceptions=False)
    assert "characters are a token of configs/models/tiny" in result.output
    rows = load_rows(tmp_path / "train.parquet")  # of two batches
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    lengths = [len(tokenizer.encode(text_of(row)).ids) for row in rows]
    assert len(rows) == 40 and min(lengths) > 3500 and max(lengths) <= 7000
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"doc_tokens": 3050}, "doc_tokens=3050 is too near min_doc_tokens=3000: raise it to 3390"),
        ({"num_records": 2}, r"num_records must be 3 \.\. 128 in the long tier; got 2"),
        ({"min_doc_tokens": 2000}, "min_doc_tokens=2000 has no room for 4 documents: raise min_doc_tokens to 3000"),
    ],
)
def test_sizes_that_do_not_go_together(sizes: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        SynthSpec.model_validate(SPEC.model_dump() | sizes)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tier", "hard", "--doc-tokens", "6000", "--tokenizer", str(TINY)], "only the long tier"),
        (["--tier", "long", "--doc-tokens", "6000", "--tokenizer", "nowhere"], "no tokeni"),
    ],
)
def test_a_tokenizer_that_cannot_be_used(tmp_path: Path, arguments: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        CliRunner().invoke(app, ["synth", "--output", str(tmp_path), *arguments], catch_exceptions=False)
