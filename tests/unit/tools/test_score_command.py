"""`hybridflow score` with something wrong: one message, exit code 1, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybridflow.tools.progress import RowProgress
from hybridflow.tools.score import ScoreJob, write_verdicts
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


def test_a_bad_row_and_a_bad_response_are_unknown_with_their_reason(tmp_path: Path) -> None:
    """Everything else is scored: of 3 rows one is empty of a gold, of 6 lines two are none; one row has two golds."""
    several = ROW | {"reward_model": {"style": "rule", "ground_truth": {"target": ["yen", "JPY"]}}}
    rows = [ROW, ROW | {"reward_model": {"style": "rule", "ground_truth": ""}}, several]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [
        '{"index": 0, "response": "The answer is yen."}', '{"index": 1, "response": "The answer is yen."}',
        '{"index": 7, "response": "x"}', '{"index": 2, "response": "a\\ud83d"}',
        '{"row": 2, "completions": [{"text": "The answer is JPY."}, {"text": "The answer is euro."}]}', '{"index": 0',
    ]  # fmt: skip
    (tmp_path / "responses.jsonl").write_text("\n".join(lines))
    job = ScoreJob(tmp_path / "rows.jsonl", tmp_path / "responses.jsonl", tmp_path / "out.jsonl")
    summary = write_verdicts(job, RowProgress())
    assert (summary.num_written, summary.num_scored, summary.num_unknown) == (7, 3, 4)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["reward"] for one in found] == [1.0, None, None, None, 1.0, 0.0, None]
    assert [one["index"] for one in found] == [0, 1, None, 2, 2, 2, None]
    whys = [one["why"] for one in found if one["status"] == "unknown"]
    expected = [
        "row 1, column 'reward_model.ground_truth'",
        "line 3: index is 7",
        "line 4: response has half of a surrogate pair",
        "line 6: broken JSON",
    ]
    for why, said in zip(whys, expected, strict=True):
        assert said in why and "Remedy: " in why


def test_a_wrong_row_is_named(score: Refuse, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | {"ability": "doc-quiz"}) + "\n")
    assert "row 0, column 'ability': got str 'doc-quiz'. Remedy: use one of" in score()


def test_the_output_may_not_be_the_input(refuse: Refuse, score: Refuse, tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    before = path.read_bytes()
    assert "is the file of --responses" in score("--output", path)
    assert path.read_bytes() == before
