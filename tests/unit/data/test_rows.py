"""Row files: round trips, and an error with a remedy for each thing that can be wrong."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridflow.data.rows import load_rows, write_rows
from hybridflow.data.schema import RewardModel, Row
from hybridflow.errors import DataError

GOOD: dict[str, Any] = {
    "data_source": "docmath_0_20000",
    "prompt": [{"role": "user", "content": "<text>\nThe rate is 5%.\n</text>\n\nWhich rate?"}],
    "ability": "doc-math",
    "reward_model": {"style": "rule", "ground_truth": "Therefore, the answer is 5."},
    "extra_info": {"index": 0},
}


def make_row(content: str = "Which rate?", **extra: Any) -> Row:
    return Row(
        data_source="docmath_0_20000",
        prompt=[{"role": "user", "content": content}],
        ability="doc-math",
        reward_model=RewardModel(style="rule", ground_truth="5"),
        extra_info={"index": 0, **extra},
    )


def write_json(path: Path, *values: object) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json"])
def test_rows_come_back_as_written(tmp_path: Path, suffix: str) -> None:
    rows = [make_row("Zins – 5 %?\u2028next", facts=[{"name": "rate", "position": 3}]), make_row("Two", facts=[])]
    write_rows(tmp_path / f"rows{suffix}", rows)
    assert load_rows(tmp_path / f"rows{suffix}") == rows
    assert [entry.name for entry in tmp_path.iterdir()] == [f"rows{suffix}"]


@given(content=st.text(alphabet=st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip()))
def test_any_text_survives_json_lines(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, [make_row(f"text: {content}")])
    assert load_rows(path)[0].prompt[0]["content"] == f"text: {content}"


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [make_row()])
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_rows(path, [make_row(), make_row(broken=object())])
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_columns_beyond_the_schema_are_ignored(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{**GOOD, "split": "train"}]), tmp_path / "rows.parquet")
    assert load_rows(tmp_path / "rows.parquet")[0].reward_model.ground_truth == "Therefore, the answer is 5."


def test_missing_file_names_its_nearest_neighbour(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [make_row()])
    with pytest.raises(DataError, match=r"trian\.jsonl: no such file.*did you mean .*train\.jsonl"):
        load_rows(tmp_path / "trian.jsonl")


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        load_rows(tmp_path / "nowhere" / "train.jsonl")


@pytest.mark.parametrize("name", ["rows.csv", "rows"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"unknown suffix.*\.parquet"):
        load_rows(tmp_path / name)
    with pytest.raises(DataError, match="unknown suffix"):
        write_rows(tmp_path / name, [make_row()])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name, [])
    with pytest.raises(DataError, match="has no rows"):
        load_rows(tmp_path / name)


def test_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + '{"data_source": \n', encoding="utf-8")
    with pytest.raises(DataError, match="line 3, row 1: broken JSON"):
        load_rows(path)


def test_half_of_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps({**GOOD, "data_source": "\U0001f642"}) + "\n" + json.dumps({**GOOD, "ability": "\ud83d"})
    )
    with pytest.raises(DataError, match=r"line 2, row 1: '\\ud83d' is half of a surrogate pair"):
        load_rows(path)


def test_other_bytes_are_no_parquet_and_no_text(tmp_path: Path) -> None:
    for name, reason in (("rows.parquet", "not a readable Parquet"), ("rows.jsonl", "not UTF-8")):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00garbage")
        with pytest.raises(DataError, match=reason):
            load_rows(tmp_path / name)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_renamed_column_is_recognised(tmp_path: Path, suffix: str) -> None:
    value = copy.deepcopy(GOOD)
    value["reward_modle"] = value.pop("reward_model")
    path = tmp_path / f"rows{suffix}"
    pq.write_table(pa.Table.from_pylist([value]), path) if suffix == ".parquet" else write_json(path, value)
    with pytest.raises(DataError, match=r"'reward_model' is missing; found .*extra_info.*rename 'reward_modle'"):
        load_rows(path)


@pytest.mark.parametrize(
    ("keys", "value", "column", "remedy"),
    [
        (("data_source",), 7, "data_source", "non-empty string"),
        (("data_source",), " ", "data_source", "non-empty string"),
        (("ability",), "doc-maths", "ability", "did you mean 'doc-math'"),
        (("prompt",), 7, "prompt", "list of messages"),
        (("prompt",), " ", r"prompt\[0\].content", "non-empty string"),
        (("prompt",), [], "prompt", "list of messages"),
        (("prompt", 0), {"content": "x"}, r"prompt\[0\]", "role"),
        (("prompt", 0, "role"), "assistant", "prompt", "role 'user'"),
        (("prompt", 0, "content"), " \n", r"prompt\[0\].content", "non-empty string"),
        (("prompt", 0, "content"), "<text>\n \n</text>\n\nQ?", r"prompt\[0\].content", "document .* is empty"),
        (("reward_model",), "5", "reward_model", "ground_truth"),
        (("reward_model",), {"style": "rule"}, "reward_model.ground_truth", "gold answer"),
        (("reward_model", "ground_truth"), "", "reward_model.ground_truth", "gold answer"),
        (("reward_model", "ground_truth"), [], "reward_model.ground_truth", "gold answer"),
        (("reward_model", "ground_truth"), ["a", ""], r"reward_model.ground_truth\[1\]", "gold answer"),
        (("reward_model", "ground_truth"), True, "reward_model.ground_truth", "as a string"),
        (("reward_model", "ground_truth"), math.inf, "reward_model.ground_truth", "finite"),
        (("reward_model", "ground_truth"), {"a": 1}, "reward_model.ground_truth", "target"),
        (("prompt", 0, "role"), "User", r"prompt\[0\].role", "did you mean 'user'"),
        (("prompt", 0), {"from": "robot", "value": "x"}, r"prompt\[0\].from", "human"),
        (("prompt", 0, "content"), [{"type": "image_url"}], r"prompt\[0\].content\[0\]", "parts"),
        (("extra_info",), [1], "extra_info", "object"),
    ],
)
def test_wrong_value_is_named(tmp_path: Path, keys: tuple[Any, ...], value: object, column: str, remedy: str) -> None:
    bad = copy.deepcopy(GOOD)
    place: Any = bad
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path = write_json(tmp_path / "rows.jsonl", GOOD, bad)
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2, row 1, column [\"']{column}[\"'].*Remedy: .*{remedy}"):
        load_rows(path)


def test_row_that_is_no_object(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 0.*a row is an object"):
        load_rows(write_json(tmp_path / "rows.jsonl", [1, 2]))
