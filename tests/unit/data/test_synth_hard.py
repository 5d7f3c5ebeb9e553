"""Hard tier: every gold answer is computed again here, from the facts of extra_info alone."""

import re
from collections import Counter
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
from pydantic import ValidationError

from hybridflow.data.rows import load_rows, write_rows
from hybridflow.data.schema import Row
from hybridflow.data.synth import SynthSpec, generate_rows

SPEC = SynthSpec(tier="hard", doc_tokens=3000, num_records=4, num_train=320, num_test=4)
ROWS = generate_rows(SPEC, "train", seed=11)


def document_of(row: Row) -> str:
    return row.prompt[0]["content"].split("<text>\n")[1].split("\n</text>")[0]


def recompute(row: Row) -> str:
    """The gold sentence, from facts and choices."""
    facts, formula = row.extra_info["facts"], row.extra_info["formula"]
    if formula == "copy":
        answer = facts[-1]["value"]
        if row.ability == "doc-mc":
            return f"The correct answer is ({'ABCD'[row.extra_info['choices'].index(answer)]})"
        return f"Therefore, the answer is {answer}."
    numbers = [Decimal(fact["value"].replace(",", "")) for fact in facts]
    if formula == "sum":
        value = sum(numbers, Decimal(0))
    elif formula == "second - first":
        value = numbers[1] - numbers[0]
    elif formula.startswith("(second - first) / first"):
        value = ((numbers[1] - numbers[0]) * 100 / numbers[0]).quantize(Decimal("0.01"), ROUND_HALF_UP)
    elif formula in ("principal * coupon / 100 * term", "principal * rate / 100 * term"):
        value = numbers[0] * numbers[1] * numbers[2] / 100
    elif formula in ("principal * coupon / 100 + issue cost", "principal * rate / 100 + fee"):
        value = numbers[0] * numbers[1] / 100 + numbers[2]
    elif formula == "principal + principal * rate / 100 * term":
        value = numbers[0] + numbers[0] * numbers[1] * numbers[2] / 100
    elif years := re.fullmatch(r"principal \* rate / 100 \* (\d+)", formula):
        value = numbers[0] * numbers[1] * int(years[1]) / 100
    elif year := re.fullmatch(r"principal \* rate / 100 \* \((\d+) - signing year\)", formula):
        value = numbers[0] * numbers[1] * (int(year[1]) - numbers[2]) / 100
    elif formula == "monthly rent * notice":
        value = numbers[0] * numbers[1]
    elif formula == "monthly rent * 12 * term":
        value = numbers[0] * numbers[1] * 12
    else:
        assert formula == "deposit + monthly rent * 12"
        value = numbers[0] + numbers[1] * 12
    text = re.fullmatch(r"Therefore, the answer is (-?[0-9.]+)\.", row.reward_model.ground_truth)
    assert text and Decimal(text[1]) == value
    assert "E" not in text[1] and not text[1].endswith(".") and (("." not in text[1]) or text[1][-1] != "0")
    return row.reward_model.ground_truth


def test_gold_follows_from_the_facts() -> None:
    for row in ROWS:
        assert recompute(row) == row.reward_model.ground_truth


def test_facts_stand_where_they_are_said_to() -> None:
    for row in ROWS:
        document = document_of(row)
        for fact in row.extra_info["facts"]:
            assert document[fact["position"] :].startswith(fact["text"])
            assert fact["value"] in fact["text"]
            if fact[
                "period"
            ]:  # a table row: the value stands in the column of its year, under the heading of its company
                heading = document[: fact["position"]].split("\n\n")[-1].split("\n")[0]
                assert fact["subject"] in heading
                column = heading.split(" | ").index(fact["period"])
                assert fact["text"].split(" | ")[column] == fact["value"]
            else:
                assert fact["subject"] in fact["text"] and document.count(fact["text"]) == 1


def test_question_names_what_the_first_fact_is_about() -> None:
    for row in ROWS:
        facts = row.extra_info["facts"]
        assert row.extra_info["question"] in row.prompt[0]["content"]
        assert facts[0]["subject"] in row.extra_info["question"]
        if (
            len(facts) == 2 and row.extra_info["formula"] == "copy"
        ):  # the second fact is about what the first one names, and the question does not
            assert facts[0]["value"] == facts[1]["subject"]
            assert facts[1]["subject"] not in row.extra_info["question"]


def test_kinds_take_turns_with_their_sources() -> None:
    assert Counter((row.extra_info["kind"], row.data_source, row.ability) for row in ROWS) == {
        ("lookup", "synth_lookup", "doc-qa"): 80,
        ("two_hop", "synth_two_hop", "doc-qa"): 80,
        ("arithmetic", "docmath_synth", "doc-math"): 80,
        ("choice", "long_toc_choices_synth", "doc-mc"): 80,
    }
    assert len({re.sub(r"(?<=rate / 100 \* )(\(?)\d+", r"\1n", row.extra_info["formula"]) for row in ROWS}) == 14
    golds = Counter(row.reward_model.ground_truth for row in ROWS if row.ability == "doc-mc")
    assert len(golds) == 4 and max(golds.values()) < 40


def test_choices_are_four_and_distinct() -> None:
    for row in ROWS:
        choices = row.extra_info["choices"]
        assert len(set(choices)) == len(choices) == (4 if row.ability == "doc-mc" else 0)
        for letter, choice in zip("ABCD", choices, strict=False):
            assert f"\n({letter}) {choice}" in row.prompt[0]["content"]


@pytest.mark.parametrize(("doc_tokens", "num_records"), [(600, 1), (5000, 8), (40000, 8)])
def test_documents_have_about_the_asked_length(doc_tokens: int, num_records: int) -> None:
    spec = SynthSpec(tier="hard", doc_tokens=doc_tokens, num_records=num_records, num_train=6, num_test=0)
    for row in generate_rows(spec, "train", seed=2):
        assert 4 * doc_tokens - 250 <= len(document_of(row)) <= 4 * doc_tokens


def test_the_most_records_still_have_names() -> None:
    spec = SynthSpec(tier="hard", doc_tokens=128 * 600, num_records=128, num_train=3, num_test=0)
    for layout, heading in (("report", "Governance of "), ("contracts", ", part 1: parties")):
        rows = generate_rows(spec.model_copy(update={"documents": (layout,)}), "train", seed=0)
        assert [document_of(row).count(heading) for row in rows] == [128] * 3


def test_one_kind_alone() -> None:
    spec = SynthSpec(tier="hard", doc_tokens=700, num_records=1, num_train=5, num_test=0, kinds=("choice",))
    assert {row.ability for row in generate_rows(spec, "train", seed=3)} == {"doc-mc"}


def test_streams_are_reproducible_and_disjoint() -> None:
    assert generate_rows(SPEC.model_copy(update={"num_train": 8}), "train", seed=11) == ROWS[:8]
    train = {document_of(row) for row in ROWS}
    assert not train & {document_of(row) for row in generate_rows(SPEC, "test", seed=11)}


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_rows_survive_files(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name, ROWS[:8])
    assert load_rows(tmp_path / name) == ROWS[:8]


def test_impossible_sizes_are_refused_with_a_remedy() -> None:
    with pytest.raises(ValidationError, match="raise doc_tokens to 4800, or lower num_records to 1"):
        SynthSpec(tier="hard", doc_tokens=1000, num_train=1, num_test=1)
    with pytest.raises(ValidationError, match="kinds is empty"):
        SynthSpec(tier="hard", doc_tokens=9000, num_train=1, num_test=1, kinds=())
