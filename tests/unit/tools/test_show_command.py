"""`hybridflow data show`."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hybridflow.data.rows import load_rows, write_rows
from hybridflow.data.synth import SynthSpec, generate_rows
from hybridflow.errors import DataError
from hybridflow.tools.show_commands import mount
from tests.unit.data.families import write_family

RUNNER = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"})
APP = typer.Typer()
mount(APP)


def show(*arguments: str) -> str:
    result = RUNNER.invoke(APP, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def path(tmp_path: Path) -> Path:
    spec = SynthSpec(tier="easy", doc_tokens=1200, num_train=3, num_test=1)
    write_rows(tmp_path / "train.parquet", generate_rows(spec, "train", 0))
    return tmp_path / "train.parquet"


def test_show_prints_a_row(path: Path) -> None:
    gold = load_rows(path)[2].reward_model.ground_truth
    text = show(str(path), "--row", "2")
    assert gold in text and "What is the" in text and "2 of 3" in text and "characters; --full" in text
    assert "characters; --full" not in show(str(path), "--full")


def test_show_of_a_row_that_is_not_there(path: Path) -> None:
    for more in ([], ["--chat", "configs/models/tiny"]):
        with pytest.raises(DataError, match="no row 3; it has 3 rows"):
            show(str(path), "--row", "3", *more)


def test_chat_says_what_is_read_and_what_is_learnt(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "See \x1b[31mred\u202e. Which?"},
        {"role": "assistant", "content": "<think>\nFirst.\n</think>\n\nOne."},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "Two."},
    ]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    model = write_family(tmp_path / "model", "R1-Distill present")
    text = show(str(tmp_path / "rows.jsonl"), "--chat", str(model))
    read, _, rest = text.partition("--- learnt, ")
    assert read.startswith("--- read, ") and "See \\x1b[31mred\\u202e. Which?" in read and "One." in read
    assert read.endswith("<｜Assistant｜><think>↵\n\n") and "First." not in text
    learnt = rest.partition("tokens\n")[2]
    assert learnt.startswith("↵\n</think>↵\n↵\nTwo.<｜end▁of▁sentence｜>\n--- ")
    assert "closes it empty" in learnt and "1 earlier answers are read" in learnt


def test_a_row_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    rows = [[("user", "Q?"), ("assistant", "A.")], [("system", "S"), ("user", "Q?"), ("assistant", "A.")]]
    lines = [{"messages": [{"role": role, "content": content} for role, content in row]} for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = write_family(tmp_path / "model", "Mistral")
    assert "A.</s>" in show(str(tmp_path / "rows.jsonl"), "--chat", str(model))
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2, row 1: row 1: the chat template .* must alternate"):
        show(str(tmp_path / "rows.jsonl"), "--row", "1", "--chat", str(model))
