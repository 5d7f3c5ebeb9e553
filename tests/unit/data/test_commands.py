"""`hybridflow data`."""

import errno
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hybridflow.data import rows
from hybridflow.data.commands import app
from hybridflow.data.rows import load_rows
from hybridflow.data.synth import SynthSpec, generate_rows
from hybridflow.errors import ConfigError, DataError

RUNNER = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"})


def invoke(*arguments: str) -> str:
    result = RUNNER.invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_synth_writes_both_splits(tmp_path: Path, file_format: str) -> None:
    sizes = ["--num-train", "5", "--num-test", "3", "--doc-tokens", "64", "--seed", "9"]
    invoke("synth", "--output", str(tmp_path / "out"), "--format", file_format, *sizes)
    spec = SynthSpec(tier="easy", doc_tokens=64, num_train=5, num_test=3)
    assert load_rows(tmp_path / "out" / f"train.{file_format}") == generate_rows(spec, "train", 9)
    assert load_rows(tmp_path / "out" / f"test.{file_format}") == generate_rows(spec, "test", 9)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--tier hard --doc-tokens 500", "doc_tokens=500 has no room for 8 records: raise doc_tokens to 4800"),
        (
            "--tier long --min-doc-tokens 3000 --doc-tokens 9000",
            "min_doc_tokens=3000 has no room for 8 documents: raise min_doc_tokens to 5400, or lower num_records to 4",
        ),
        (
            "--tier long --min-doc-tokens 600 --doc-tokens 9000",
            "min_doc_tokens=600 has no room for 8 documents: raise min_doc_tokens to 5400",
        ),
    ],
)
def test_impossible_size_is_an_error_for_the_user(tmp_path: Path, options: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot generate this data set: {told}$"):
        invoke("synth", "--output", str(tmp_path), *options.split())


def test_help_teaches() -> None:
    text = invoke("synth", "--help")
    assert "Example:" in text and "--doc-tokens" in text and "two-hop" in text


@pytest.mark.parametrize("place", ["a-file", "a-file/below", "/proc/self/rows"])
def test_folder_that_cannot_be_written_to_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "a-file").write_text("kept")
    with pytest.raises(DataError, match=r"train\.parquet: cannot be written: .*Remedy: "):
        invoke("synth", "--output", str(tmp_path / place), "--num-train", "1", "--num-test", "1")
    assert (tmp_path / "a-file").read_text() == "kept"


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_full_disk_is_told_with_the_path_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str
) -> None:
    """A disk that is full when the file is closed, as the rename of a part does not happen then."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rows.pq.ParquetWriter, "write_table", refuse)
    monkeypatch.setattr(rows.json, "dumps", refuse)
    with pytest.raises(DataError, match=rf"train\.{file_format}: cannot be written: No space left on device"):
        invoke("synth", "--output", str(tmp_path), "--num-train", "1", "--num-test", "1", "--format", file_format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [["--num-train", "0"], ["--num-test", "0"], ["--seed", str(2**64)]])
def test_numbers_that_are_none(tmp_path: Path, option: list[str]) -> None:
    result = RUNNER.invoke(app, ["synth", "--output", str(tmp_path), *option])
    assert result.exit_code == 2 and option[0] in result.output and list(tmp_path.iterdir()) == []
