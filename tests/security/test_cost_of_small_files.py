"""Files of a few kilobytes by somebody else: none costs more memory or time than it says, none ends in a traceback."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridflow.data.rows import load_records, load_rows
from hybridflow.errors import CheckpointError, ConfigError, DataError
from hybridflow.reading import budget
from hybridflow.recording.run_folder.finished import read_finished
from hybridflow.recording.state import read_state
from hybridflow.recording.step_lines import find_end
from hybridflow.tools.output_file import OutputFile
from hybridflow.tools.sft_inputs import read_state as read_sft_state
from megatron_ext.checkpoint.commit import BrokenCheckpointError, check_sizes, read_manifest
from megatron_ext.checkpoint.files import read_json

RECORD: dict[str, Any] = {
    "data_source": "mine",
    "prompt": [{"role": "user", "content": "Which rate?"}],
    "ability": "doc-qa",
    "reward_model": {"style": "rule", "ground_truth": "yen"},
}
MIB = 2**20
DEEP, LONG = "[" * 200_000, "9" * 5000


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound of a small file at 16 MiB, so that the attacks can be small too."""
    monkeypatch.setattr(budget, "ALWAYS_BYTES", 16 * MIB)


def test_unused_column_of_parquet_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.Table.from_pylist([RECORD] * 10)
    for number in range(4):
        table = table.append_column(f"unused{number}", pa.array(["x" * 4 * MIB] * 10))
    pq.write_table(table, path, compression="zstd", use_dictionary=True)
    pool = pa.default_memory_pool()
    del table
    held = pool.bytes_allocated()
    tracemalloc.start()
    assert len(load_rows(path)) == 10
    assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    tracemalloc.stop()
    assert pool.bytes_allocated() - held < 4 * MIB


def write_repeated(path: Path, num_rows: int) -> None:
    """Every row holds the same MiB, which are stored once: a few kilobytes."""
    value = pa.array([[{"role": "user", "content": "x" * MIB}]])
    table = pa.Table.from_pylist([RECORD]).set_column(1, "prompt", value)
    pq.write_table(pa.concat_tables([table] * num_rows), path, compression="zstd", dictionary_pagesize_limit=2**30)
    assert path.stat().st_size < 20_000


@pytest.mark.usefixtures("small_budget")
def test_used_column_of_parquet_is_bounded(tmp_path: Path) -> None:
    write_repeated(tmp_path / "rows.parquet", 200)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"rows\.parquet: unpacks to more than 1[67] MiB"):
        load_rows(tmp_path / "rows.parquet")
    assert tracemalloc.get_traced_memory()[1] < 48 * MIB
    tracemalloc.stop()


@pytest.mark.usefixtures("small_budget")
def test_value_of_parquet_that_is_larger_than_the_bound(tmp_path: Path) -> None:
    value = pa.array([[{"role": "user", "content": "x" * 20 * MIB}]])
    table = pa.Table.from_pylist([RECORD]).set_column(1, "prompt", value)
    pq.write_table(table, tmp_path / "rows.parquet", compression="zstd")
    del table, value
    with pytest.raises(DataError, match=r"unpacks to more than 1[67] MiB"):
        load_rows(tmp_path / "rows.parquet")


def test_any_number_of_empty_rows_of_parquet(tmp_path: Path) -> None:
    column = pa.nulls(2_000_000, pa.string())
    pq.write_table(pa.table(dict.fromkeys(RECORD, column)), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="unpacks to more than"):
        load_rows(tmp_path / "rows.parquet")


def packed(content: bytes, times: int) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([*(compressor.compress(content) for _ in range(times)), compressor.flush()])


@pytest.mark.usefixtures("small_budget")
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("one-line.jsonl.gz", packed(b"x" * MIB, 20), "unpacks to more than 1"),
        ("blank-lines.jsonl.gz", packed(b"\n" * MIB, 20), "unpacks to more than 1"),
        ("list.json.gz", packed(b"[" + b"{}," * (MIB // 3), 20), "unpacks to more than 1"),
        ("rows.jsonl.zst", pa.Codec("zstd").compress(b"x" * 20 * MIB).to_pybytes(), "unpacks to more than 1"),
        ("cut.jsonl.gz", gzip.compress(json.dumps(RECORD).encode())[:-20], "cannot be unpacked"),
        ("none.jsonl.gz", b"{}", "cannot be unpacked"),
        ("none.jsonl.zst", b"{}", "cannot be unpacked"),
    ],
)
def test_packed_json_is_bounded(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.jsonl", "{}\n" * 200_000, "read no further: 10000 of 10000 rows cannot be used"),
        ("empty.json", "[" + "{}," * 200_000 + "{}]", "read no further: 10000 of 10000 rows cannot be used"),
        ("keys.jsonl", json.dumps({f"k{number}": 1 for number in range(300_000)}), "k39 and 299960 more"),
        ("key.jsonl", json.dumps({"k" * 30 * MIB: 1}), f"found {'k' * 80}..."),
    ],
)
def test_rows_that_are_none_cost_little_and_say_little(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    began = time.process_time()
    with pytest.raises(DataError) as refused:
        load_rows(tmp_path / name)
    assert time.process_time() - began < 5.0
    assert said in str(refused.value) and len(str(refused.value)) < 6000


@pytest.mark.usefixtures("small_budget")
def test_lines_of_nothing_are_as_bounded_as_packed_ones(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(RECORD) + "\n" + "{}\n" * 30_000)
    with pytest.raises(DataError, match="unpacks to more than"):
        load_records(tmp_path / "rows.jsonl")


def test_names_of_columns_that_are_no_text_or_too_many(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"answerless": ["a"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"answerless", b"answer\xff\xfe\xfd\xfc"))
    with pytest.raises(DataError, match="not a readable Parquet file: 'utf-8' codec"):
        load_rows(path)
    pq.write_table(pa.table({f"c{number}": ["a"] for number in range(5000)}), path)
    with pytest.raises(DataError, match="c39 and 4960 more"):
        load_rows(path)


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "\ud800", "a\x1b[2J", 7, ["a"]])
def test_manifest_whose_files_have_no_names(tmp_path: Path, name: Any) -> None:
    files = {name: [1, 1]} if isinstance(name, str) else name
    (tmp_path / "manifest.json").write_text(json.dumps({"version": 1, "description": {}, "files": files}))
    with pytest.raises(BrokenCheckpointError, match=r"manifest\.json cannot be read"):
        check_sizes(tmp_path)


def test_one_long_line_costs_itself(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(json.dumps(RECORD).encode() + b"\n" + b"x" * 70 * MIB)
    with pytest.raises(DataError, match="line 2, row 1: a line of 73400320 bytes"):
        load_records(tmp_path / "rows.jsonl")


def test_record_of_a_run_is_cut_in_constant_memory(tmp_path: Path) -> None:
    """A line of step k; 60 MiB. What is kept is what was there."""
    path = tmp_path / "completions.jsonl"
    text = "x" * MIB
    with path.open("w") as file:
        for step in range(1, 61):
            file.write(json.dumps({"step": step, "text": text}) + "\n")
    tracemalloc.start()
    end = find_end(path, 59, kind="a completion")
    assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    tracemalloc.stop()
    assert end == path.stat().st_size - len(json.dumps({"step": 60, "text": text})) - 1


@pytest.mark.parametrize("content", [DEEP, '{"x": ' + DEEP, '{"rl_step": ' + LONG + "}", '{"rl_step": "x"}', "[1]", ""])
def test_state_and_manifest_and_markers(tmp_path: Path, content: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match="not a readable run state"):
        read_state(path)
    with pytest.raises(BrokenCheckpointError, match="cannot be read"):
        read_manifest(tmp_path)
    if content != "[1]" and "rl_step" not in content[:9]:
        with pytest.raises((CheckpointError, ValueError)):
            read_json(path)
    assert read_finished(path, tmp_path, None) is None
    marker = tmp_path / "out.jsonl.meta.json"
    marker.write_text(content)
    (tmp_path / "out.jsonl").write_text("{}\n")
    _, moved = OutputFile(tmp_path / "out.jsonl").resume({"job": 1}, overwrite=False)
    assert moved is not None


def test_state_of_supervised_training(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"x": ' + DEEP)
    with pytest.raises(CheckpointError, match="not a readable run state"):
        read_sft_state(tmp_path / "state.json")


@pytest.mark.parametrize(
    "line", [DEEP, '{"step": ' + LONG + "}", '{"step": true}', '{"step": 1.5}', "\0" * 50, '{"stop": 1}', "[1]", "7"]
)
def test_line_that_is_no_record(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 0}}\n{line}\n{{"step": 1}}\n')
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: not metrics of a step of this run: .*Remedy: "):
        find_end(path, 5, kind="metrics of a step")
    assert path.read_bytes() == before


def test_all_of_it_is_quick(tmp_path: Path) -> None:
    began = time.process_time()
    for content in (DEEP, LONG, '{"a":' * 100_000):
        (tmp_path / "rows.jsonl").write_text(content)
        with pytest.raises((DataError, ConfigError)):
            load_rows(tmp_path / "rows.jsonl")
    assert time.process_time() - began < 2.0
