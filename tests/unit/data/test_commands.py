"""`hybridflow data`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

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


def test_impossible_size_is_an_error_for_the_user(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="raise doc_tokens to 4800"):
        invoke("synth", "--output", str(tmp_path), "--tier", "hard", "--doc-tokens", "500")


def test_help_teaches() -> None:
    text = invoke("synth", "--help")
    assert "Example:" in text and "--doc-tokens" in text and "two-hop" in text


def test_show_prints_a_row(tmp_path: Path) -> None:
    invoke("synth", "--output", str(tmp_path), "--num-train", "3", "--num-test", "1", "--doc-tokens", "1200")
    path = tmp_path / "train.parquet"
    gold = load_rows(path)[2].reward_model.ground_truth
    text = invoke("show", str(path), "--row", "2")
    assert gold in text and "What is the" in text and "2 of 3" in text and "characters; --full" in text
    assert "characters; --full" not in invoke("show", str(path), "--full")


def test_show_of_a_row_that_is_not_there(tmp_path: Path) -> None:
    invoke("synth", "--output", str(tmp_path), "--num-train", "3", "--num-test", "1")
    with pytest.raises(DataError, match="no row 3; it has 3 rows"):
        invoke("show", str(tmp_path / "train.parquet"), "--row", "3")
