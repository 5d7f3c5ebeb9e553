"""`hybridflow score` with something wrong: one message, exit code 1, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.tools.conftest import Refuse

ROW = {
    "data_source": "own",
    "prompt": [{"role": "user", "content": "Which one?"}],
    "ability": "doc-qa",
    "reward_model": {"style": "rule", "ground_truth": "yen"},
    "extra_info": {},
}


@pytest.fixture
def score(refuse: Refuse, tmp_path: Path) -> Refuse:
    """Runs the command on one row, which must refuse and leave no output."""
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    (tmp_path / "responses.jsonl").write_text('{"index": 0, "response": "The answer is yen."}\n')

    def run(*options: object) -> str:
        files = {"--data": "rows.jsonl", "--responses": "responses.jsonl", "--output": "new/out.jsonl"}
        named = [part for option, name in files.items() for part in (option, tmp_path / name)]
        message = refuse("score", *named, *options)
        assert not (tmp_path / "new").exists()
        return message

    return run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--responses", "none.jsonl"], "--responses none.jsonl: no such file. Remedy: check the path"),
        (["--data", "none.jsonl"], "none.jsonl: no such file"),
        (["--judge-url", "localhost"], "'localhost' is no URL of a server. Remedy: write one such as http://127.0.0.1"),
        (["--judge-url", "http://h:1?x=2"], "'http://h:1?x=2' has more than a path"),
        (["--judge-url", "http://h:1", "http://h:1/v1/"], "name one server twice. Remedy: name it once"),
        (["--judge-votes", 2], "--judge-votes 2: 2 votes may tie. Remedy: use an odd number"),
        (["--judge-deadline-s", 0], "--judge-deadline-s 0.0: Input should be greater than 0"),
    ],
)
def test_wrong_options(score: Refuse, options: list[object], said: str) -> None:
    assert said in score(*options)


def test_a_wrong_response_is_named_with_file_line_value_and_remedy(score: Refuse, tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    path.write_text(path.read_text() + '{"index": 7, "response": "x"}\n')
    message = score()
    assert f"{path}, line 2: index is 7" in message and "has the rows 0 to 0. Remedy:" in message


def test_a_wrong_row_is_named(score: Refuse, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | {"ability": "doc-quiz"}) + "\n")
    assert "row 0, column 'ability': got str 'doc-quiz'. Remedy: use one of" in score()


def test_the_output_may_not_be_the_input(refuse: Refuse, score: Refuse, tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    before = path.read_bytes()
    assert "is the file of --responses" in score("--output", path)
    assert path.read_bytes() == before
