"""Rows as people have them: every form is read as the same row, or its row alone is told to be bad."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridflow.data.rows import load_rows, read_rows, survey_rows, write_rows
from hybridflow.data.schema import BadRow, RewardModel, Row
from hybridflow.errors import DataError

QUESTION = "Which rate?"
RECORD: dict[str, Any] = {
    "data_source": "mine",
    "prompt": [{"role": "user", "content": QUESTION}],
    "ability": "doc-qa",
    "reward_model": {"style": "rule", "ground_truth": "yen"},
}
ROW = Row(
    data_source="mine",
    prompt=[{"role": "user", "content": QUESTION}],
    ability="doc-qa",
    reward_model=RewardModel(style="rule", ground_truth="yen"),
    extra_info={},
)
LINE = json.dumps(RECORD).encode() + b"\n"


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content).to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", LINE * 2),
        ("rows.ndjson", b"\n" + LINE + b"\n" + LINE.strip()),
        ("ROWS.JSONL", LINE * 2),
        ("rows.jsonl", b"\xef\xbb\xbf" + LINE * 2),
        ("rows.jsonl.gz", gzip.compress(LINE * 2)),
        ("rows.jsonl.gz", gzip.compress(LINE) + gzip.compress(LINE)),
        ("rows.JSONL.GZ", gzip.compress(LINE * 2)),
        ("rows.jsonl.zst", zstd(LINE * 2)),
        ("rows.json", json.dumps([RECORD, RECORD], indent=2).encode()),
        ("rows.json", b"\xef\xbb\xbf\n [" + LINE + b"," + LINE + b"]"),
        ("rows.json.gz", gzip.compress(json.dumps([RECORD, RECORD]).encode())),
        ("rows.jsonl", LINE.replace(b"\n", b"\r\n") * 2),
    ],
)  # fmt: skip
def test_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert load_rows(tmp_path / name) == [ROW, ROW]


def test_folder_and_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    (folder / "part").mkdir(parents=True)
    (folder / "_SUCCESS.json").write_text("")
    for name in ("b.parquet", "a.parquet", "part/c.PARQUET"):
        pq.write_table(pa.Table.from_pylist([RECORD | {"data_source": name}]), folder / name)
    assert [row.data_source for row in load_rows(folder)] == ["a.parquet", "b.parquet", "part/c.PARQUET"]
    assert [row.data_source for row in load_rows(folder / "*.parquet")] == ["a.parquet", "b.parquet"]
    assert len(load_rows(folder / "**" / "*.*")) == 3
    with pytest.raises(DataError, match=r"x\*\.parquet: no row file matches"):
        load_rows(folder / "x*.parquet")
    (folder / "a.jsonl").write_bytes(LINE)
    with pytest.raises(DataError, match="Parquet and JSON files in one folder"):
        load_rows(folder)
    for names, said in [
        (("part/x.jsonl", "part/x.jsonl.gz"), "x.jsonl and part/x.jsonl.gz may be the same rows twice"),
        (("train.jsonl", "test-0.jsonl"), "several splits in one folder"),
        (("train/a.jsonl", "validation/b.jsonl"), "several splits in one folder"),
    ]:
        mixed = tmp_path / names[0].replace("/", "-")
        for name in names:
            (mixed / name).parent.mkdir(parents=True, exist_ok=True)
            (mixed / name).write_bytes(gzip.compress(LINE) if name.endswith("gz") else LINE)
        with pytest.raises(DataError, match=said):
            load_rows(mixed)
    assert load_rows(tmp_path / "train.jsonl" / "train*") == [ROW]
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"gone\.jsonl is a link to .*nowhere\.jsonl, which does not exist"):
        load_rows(tmp_path / "gone.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no row file in this folder"):
        load_rows(tmp_path / "empty")


@pytest.mark.parametrize(
    "prompt",
    [
        QUESTION,
        json.dumps(RECORD["prompt"]),
        [{"from": "human", "value": QUESTION}],
        [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
        [{"role": "user", "content": [QUESTION]}],
        json.dumps([{"from": "human", "value": QUESTION}]),
        RECORD["prompt"][0],
        json.dumps(RECORD["prompt"][0]),
    ],
)
def test_prompts(tmp_path: Path, prompt: object) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(RECORD | {"prompt": prompt, "extra_info": None}))
    assert load_rows(tmp_path / "rows.jsonl") == [ROW]


def test_text_that_only_begins_like_json_is_a_text(tmp_path: Path) -> None:
    texts = ["[1] What is it?", '["a"]', "[" * 500, '{"content": "x"}', "[{}]", "{'a': 1}", '{"role": "user"} Who?']
    for text in texts:
        (tmp_path / "rows.jsonl").write_text(json.dumps(RECORD | {"prompt": text}))
        assert load_rows(tmp_path / "rows.jsonl")[0].prompt == [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": str(RECORD["prompt"])}, "write the messages as JSON"),
        ({"prompt": json.dumps(RECORD["prompt"])[:-3] + "]"}, "write the messages as JSON"),
        ({"prompt": '[{"role": "robot", "content": "x"}]'}, "got str 'robot'"),
        ({"prompt": [*RECORD["prompt"], {"role": "assistant", "content": "A"}]}, "the answer itself is no part"),
        ({"reward_model": {"ground_truth": "['a', 'b']"}}, "write the gold answers as JSON"),
        ({"reward_model": {"ground_truth": '["a", ""]'}}, "ground_truth\\[1\\]'.*non-empty string"),
    ],
)
def test_lists_as_python_prints_them_are_no_answers(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(RECORD | change))
    with pytest.raises(DataError, match=said):
        load_rows(tmp_path / "rows.jsonl")


def test_objects_that_a_column_of_texts_holds(tmp_path: Path) -> None:
    model = json.dumps({"style": None, "ground_truth": "yen"})
    record = RECORD | {"reward_model": model, "extra_info": '{"index": 1}'}
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "rows.parquet")
    (row,) = load_rows(tmp_path / "rows.parquet")
    assert row.reward_model == ROW.reward_model and row.extra_info == {"index": 1}


def test_conversation_in_the_form_of_sharegpt(tmp_path: Path) -> None:
    prompt = [
        {"from": "system", "value": "Be brief."}, {"from": "human", "value": "A?"}, {"from": "gpt", "value": "B."},
        {"from": "human", "value": "C?"},
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(json.dumps(RECORD | {"prompt": prompt}))
    roles = [message["role"] for message in load_rows(tmp_path / "rows.jsonl")[0].prompt]
    assert roles == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("gold", "read"),
    [
        (5, ["5"]),
        (6.45, ["6.45"]),
        (1e-7, ["0.0000001"]),
        (1e22, ["10000000000000000000000"]),
        (["a", "b", "a"], ["a", "b"]),
        ([5, "five"], ["5", "five"]),
        ({"target": ["a", "b"]}, ["a", "b"]),
        ({"target": "a"}, ["a"]),
        ({"target": 12}, ["12"]),
        ('["a", "b"]', ["a", "b"]),
        ('{"target": ["a", 5]}', ["a", "5"]),
        ("[0, 1]", ["[0, 1]"]),
    ],
)
def test_golds(tmp_path: Path, gold: object, read: list[str]) -> None:
    record = RECORD | {"reward_model": {"style": "rule", "ground_truth": gold}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(record))
    pq.write_table(pa.Table.from_pylist([record]) if gold != [5, "five"] else _as_text(record), tmp_path / "r.parquet")
    for name in ("rows.jsonl", "r.parquet"):
        model = load_rows(tmp_path / name)[0].reward_model
        assert [model.ground_truth, *model.alternatives] == read


def _as_text(record: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([record | {"reward_model": {"style": "rule", "ground_truth": ["5", "five"]}}])


def test_golds_of_a_decimal_column(tmp_path: Path) -> None:
    record = RECORD | {"reward_model": {"style": "rule", "ground_truth": Decimal("12.50")}}
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "rows.parquet")
    assert load_rows(tmp_path / "rows.parquet")[0].reward_model.ground_truth == "12.50"


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_several_golds_come_back_as_written(tmp_path: Path, suffix: str) -> None:
    model = RewardModel(style="rule", ground_truth="a", alternatives=["b"])
    rows = [ROW, Row(data_source="m", prompt=ROW.prompt, ability="doc-qa", reward_model=model, extra_info={"index": 1})]
    write_rows(tmp_path / f"rows{suffix}", rows)
    assert [row.reward_model for row in load_rows(tmp_path / f"rows{suffix}")] == [ROW.reward_model, model]


def one_column(name: str, values: pa.Array) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        table = pa.Table.from_pylist([RECORD] * len(values))
        pq.write_table(table.append_column(name, values), path)

    return write


FAR = 2**52
BAD_TEXT = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"\xff\xfea")]
)


@pytest.mark.parametrize(
    "write",
    [
        one_column("unread", BAD_TEXT),
        one_column("unread", pa.array([1, 2**62 + 1], pa.timestamp("ns"))),
        one_column("unread", pa.array([FAR, FAR], pa.timestamp("s"))),
        one_column("unread", pa.array([1, 2], pa.timestamp("us", "Mars/Phobos"))),
        one_column("extra_info", pa.array([{"t": 1}, {"t": 2**62 + 1}], pa.struct([("t", pa.timestamp("ns"))]))),
        one_column("extra_info", pa.array([{"t": [FAR]}, None], pa.struct([("t", pa.list_(pa.timestamp("s")))]))),
        one_column("extra_info", pa.array([{"t": 1}] * 2, pa.struct([("t", pa.timestamp("us", "Mars/Phobos"))]))),
        one_column("extra_info", pa.array([{"t": datetime(2024, 1, 1, tzinfo=UTC)}] * 2)),
    ],
)
def test_columns_that_nobody_reads_break_nothing(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "rows.parquet")
    assert [row.prompt for row in load_rows(tmp_path / "rows.parquet")] == [ROW.prompt, ROW.prompt]


def test_text_of_parquet_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([RECORD] * 2).set_column(0, "data_source", BAD_TEXT)
    pq.write_table(table, tmp_path / "rows.parquet")
    first, second = read_rows(tmp_path / "rows.parquet")
    assert isinstance(first, BadRow) and "row 0: column 'data_source': UnicodeDecodeError" in first.why
    assert isinstance(second, Row) and second.data_source == "a"


def test_bytes_are_text(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([RECORD]).set_column(0, "data_source", pa.array([b"mine"], pa.binary()))
    pq.write_table(table, tmp_path / "rows.parquet")
    assert load_rows(tmp_path / "rows.parquet") == [ROW]


def test_maps_are_objects_and_a_column_twice_is_refused(tmp_path: Path) -> None:
    kind = pa.map_(pa.string(), pa.binary())
    table = pa.Table.from_pylist([RECORD]).drop_columns("reward_model")
    table = table.append_column("reward_model", pa.array([[("style", b"rule"), ("ground_truth", b"yen")]], kind))
    pq.write_table(table.append_column("extra_info", pa.array([[]], kind)), tmp_path / "rows.parquet")
    assert load_rows(tmp_path / "rows.parquet") == [ROW]
    names = [*table.column_names, "prompt"]
    pq.write_table(pa.Table.from_arrays([*table.columns, table["prompt"]], names=names), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="two columns have the name 'prompt'"):
        load_rows(tmp_path / "rows.parquet")


BAD_LINES = {
    "a key twice": (b'{"ability": "doc-qa", "ability": "doc-mc"}', "the key 'ability' is there twice"),
    "half a pair": (rb'{"data_source": "\ud83d"}', "half of a surrogate pair"),
    "digits": (b'{"extra_info": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
    "just too many digits": (b'{"extra_info": 1.' + b"9" * 4300 + b"}", "digits"),
    "depth": (b'{"extra_info": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "more than 64 deep"),
    "objects": (b'{"a":' * 500 + b"1" + b"}" * 500, "more than 64 deep"),
    "broken": (b'{"data_source": ', "broken JSON"),
    "not UTF-8": (b'{"data_source": "\xff"}', "not UTF-8"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_line_costs_its_row(tmp_path: Path, case: str) -> None:
    line, why = BAD_LINES[case]
    (tmp_path / "rows.jsonl").write_bytes(LINE + line + b"\n" + LINE)
    before, bad, after = read_rows(tmp_path / "rows.jsonl")
    assert before == after == ROW
    assert isinstance(bad, BadRow) and f"{tmp_path / 'rows.jsonl'}, line 2, row 1: " in bad.why and why in bad.why
    with pytest.raises(DataError, match="line 2, row 1"):
        load_rows(tmp_path / "rows.jsonl")


def test_half_a_pair_in_a_list_costs_its_row(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([RECORD, RECORD | {"data_source": "\ud83d"}, RECORD]))
    assert [isinstance(row, Row) for row in read_rows(tmp_path / "rows.json")] == [True, False, True]


def test_all_bad_rows_are_named_at_once(tmp_path: Path) -> None:
    bad = json.dumps(RECORD | {"reward_model": {"ground_truth": ""}}).encode() + b"\n"
    (tmp_path / "rows.jsonl").write_bytes(LINE + bad * 12)
    with pytest.raises(DataError) as caught:
        load_rows(tmp_path / "rows.jsonl")
    told = str(caught.value)
    assert "12 of 13 rows cannot be used" in told and "row 1, column" in told and "row 10, column" in told
    assert "row 11," not in told and "and 2 more" in told
    survey = survey_rows(tmp_path / "rows.jsonl")
    assert (survey.num_rows, len(survey.problems), survey.abilities) == (13, 12, {"doc-qa": 1})
    assert (survey.shortest_chars, survey.longest_chars) == (len(QUESTION), len(QUESTION))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_all_missing_columns_are_named_with_what_makes_rows(tmp_path: Path, suffix: str) -> None:
    foreign = {"question": "Q?", "answer": "A", "context": "D"}
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([foreign]), path)
    else:
        path.write_text(json.dumps(foreign))
    said = r"columns 'data_source', 'prompt', 'ability', 'reward_model' are missing; found question, answer, context"
    with pytest.raises(DataError, match=rf"{said}\..*hybridflow data convert"):
        load_rows(path)
