"""`hybridflow data`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hybridflow.data.commands import app
from hybridflow.data.rows import load_rows
from hybridflow.data.synth import SynthSpec, generate_rows
from hybridflow.errors import ConfigError

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
