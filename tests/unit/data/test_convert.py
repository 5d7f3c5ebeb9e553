"""Rows out of what people have: every kind of file gives the same row, and what is missing is said at once."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hybridflow.data.chat_template import CHOICE_FORMAT_INSTRUCTION, FORMAT_INSTRUCTION, build_prompt
from hybridflow.data.commands import app
from hybridflow.data.convert import Conversion, convert_rows, read_mapping
from hybridflow.data.rows import load_rows
from hybridflow.data.schema import BadRow, RewardModel, Row
from hybridflow.errors import DataError

FOREIGN = {"q": "Which rate, now?", "a": "5%", "text": 'It says "5%",\nhere.'}
MAPPING = "question=q,answer=a,document=text"


def write(path: Path, *records: dict[str, Any]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(records)), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            table = csv.DictWriter(file, records[0], delimiter="," if path.suffix == ".csv" else "\t")
            table.writeheader()
            table.writerows(records)
    elif path.suffix == ".json":
        path.write_text(json.dumps(list(records), indent=1))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def convert(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"mine{suffix}", FOREIGN, FOREIGN | {"q": "Two?"})
    said = convert(path, "--columns", MAPPING, "--output", tmp_path / "rows.parquet")
    assert said.strip() == f"{tmp_path / 'rows.parquet'}: 2 rows"
    row = load_rows(tmp_path / "rows.parquet")[0]
    assert row == Row(
        data_source="mine",
        prompt=[{"role": "user", "content": build_prompt(FOREIGN["text"], FOREIGN["q"])}],
        ability="doc-qa",
        reward_model=RewardModel(style="rule", ground_truth="5%"),
        extra_info={"index": 0, "question": FOREIGN["q"]},
    )
    assert row.prompt[0]["content"].endswith('the answer is (insert answer here)".')


def test_document_is_optional_and_columns_may_have_the_names_of_parts(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", {"question": "2 + 2?", "answer": 4})
    (row,) = convert_rows(Conversion(path, ability="doc-math", data_source="sums"))
    assert isinstance(row, Row) and row.prompt[0]["content"] == "2 + 2?" + FORMAT_INSTRUCTION
    assert (row.data_source, row.ability, row.reward_model.ground_truth) == ("sums", "doc-math", "4")


def test_keys_within_a_column_and_several_answers(tmp_path: Path) -> None:
    path = write(tmp_path / "squad.json", {"question": "Who?", "answers": {"text": ["Ann", "A."]}, "context": "Ann."})
    (row,) = convert_rows(Conversion(path, read_mapping("answer=answers.text,document=context")))
    assert isinstance(row, Row)
    assert (row.reward_model.ground_truth, row.reward_model.alternatives) == ("Ann", ["A."])


@pytest.mark.parametrize("answer", ["(B)", "b", "two"])
@pytest.mark.parametrize("document", [{}, {"document": "One, two."}])
def test_choices(tmp_path: Path, answer: str, document: dict[str, str]) -> None:
    choices = ["one", "two", "three", "four"]
    record = {"question": "Which?", "answer": answer} | document
    lines = write(tmp_path / "m.jsonl", record | {"choices": choices})
    for path in (lines, write(tmp_path / "m.csv", record | {"choices": json.dumps(choices)})):
        (row,) = convert_rows(Conversion(path, ability="doc-mc"))
        assert isinstance(row, Row) and row.reward_model.ground_truth == "B"
        asked = f"Which?\n(A) one\n(B) two\n(C) three\n(D) four{CHOICE_FORMAT_INSTRUCTION}"
        assert row.prompt[0]["content"].endswith(asked)


def test_choices_that_stand_in_the_question(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", {"question": "Which? (A) 1 (B) 2", "answer": "A", "document": "1"})
    (row,) = convert_rows(Conversion(path, ability="doc-mc"))
    assert isinstance(row, Row) and row.prompt[0]["content"].endswith(f"(B) 2{CHOICE_FORMAT_INSTRUCTION}")


def test_all_missing_columns_are_named_with_the_command(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", {"query": "?", "answers": "a", "context": "c"})
    with pytest.raises(DataError) as caught:
        convert_rows(Conversion(path, {"document": "contxt"}))
    told = str(caught.value)
    assert "question ('question')" in told and "answer ('answer' (did you mean 'answers'?))" in told
    assert "document ('contxt' (did you mean 'context'?))" in told and "found query, answers, context" in told
    assert f"hybridflow data convert {path} --columns question=...,answer=...,document=..." in told


def test_bad_rows_are_named_or_left_out(tmp_path: Path) -> None:
    records = [{"question": "?", "answer": "a"}, {"question": "?", "answer": ""}, {"question": None, "answer": "a"}]
    path = write(tmp_path / "m.jsonl", *records)
    assert [isinstance(row, BadRow) for row in convert_rows(Conversion(path))] == [False, True, True]
    with pytest.raises(DataError, match="2 of 3 rows cannot be used"):
        convert(path, "--output", tmp_path / "rows.jsonl")
    assert "1 rows; 2 left out, the first:" in convert(path, "--output", tmp_path / "rows.jsonl", "--drop-bad")
    with pytest.raises(DataError, match="is there already"):
        convert(path, "--output", tmp_path / "rows.jsonl", "--drop-bad")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.csv",
            "q;a;d\nWho?;Bob;Bob is here\n",
            "'q;a;d', has ';' between the names, where .csv has ','. Remedy: save",
        ),
        ("a.tsv", "q,a,d\nWho?,Bob,Bob is here\n", "has ',' between the names, where .tsv has '\\t'. Remedy: save"),
        ("a.csv", None, "a.csv: no such file. Remedy: check the path; did you mean"),
    ],
)
def test_a_table_with_other_separators_or_of_another_name(
    tmp_path: Path, name: str, content: str | None, said: str
) -> None:
    (tmp_path / (name if content else "aa.csv")).write_text(content or "q,a,d\n")
    with pytest.raises(DataError) as caught:
        convert_rows(Conversion(tmp_path / name, {"question": "q", "answer": "a"}, "doc-qa", ""))
    assert said in str(caught.value)


def test_spaces_around_the_names_of_a_table_are_no_part_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("q, a ,d\nWho?,Bob,Bob is here\n")
    (row,) = convert_rows(Conversion(tmp_path / "a.csv", read_mapping("question=q,answer= a"), "doc-qa", ""))
    assert isinstance(row, Row) and row.reward_model.ground_truth == "Bob"


@pytest.mark.parametrize("text", ["question", "question=", "frage=q", "question=a,question=b"])
def test_mapping_that_is_none(text: str) -> None:
    with pytest.raises(DataError, match="Remedy: write question="):
        read_mapping(text)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"question,answer\na\n", "1 values for 2 columns"),
        (b"question,question\na,b\n", "does not name every column once"),
        (b"question,answer\n\xff,b\n", "no table as UTF-8"),
        (b'question,answer\n"a,b\n', "no table as UTF-8"),
        (b"question,answer\n", "has no rows"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        convert(tmp_path / "m.csv", "--output", tmp_path / "rows.jsonl")
