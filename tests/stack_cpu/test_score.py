"""`hybridflow score` as a user runs it: real stream, workers and scoring processes; a judge on the loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hybridflow import cli
from tests.bench.judge_server import UNREADABLE, JudgeServer
from tests.stack_cpu.command import ROOT, read_lines

pytestmark = [pytest.mark.stack_cpu]

TATQA = ROOT.parent / "shared/data/tatqa_docqa.jsonl"
KEYS = ["index", "k", "status", "reward", "rule", "judge", "extracted", "why"]


Score = Callable[..., tuple[list[dict[str, Any]], str]]


def arguments(folder: Path, *options: object) -> list[str]:
    files = {"data": "rows.jsonl", "responses": "responses.jsonl", "output": "out.jsonl"}
    named = [part for option, name in files.items() for part in (f"--{option}", folder / name)]
    return ["score", *map(str, [*named, *options])]


def command(folder: Path, *options: object) -> list[str]:
    return [sys.executable, "-m", "hybridflow.cli", *arguments(folder, *options)]


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Score]:
    """Runs the command in this process, which saves the start of another one: verdicts, and what it said."""
    before = signal.getsignal(signal.SIGTERM)

    def run(folder: Path, *options: object, code: int = 0) -> tuple[list[dict[str, Any]], str]:
        monkeypatch.setattr(sys, "argv", ["hybridflow", *arguments(folder, *options)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        assert (caught.value.code or 0) == code, said.err
        assert said.out == "" and "Traceback" not in said.err
        return read_lines(folder / "out.jsonl"), said.err

    yield run
    signal.signal(signal.SIGTERM, before)


def write_job(folder: Path, rows: list[tuple[str, str]], responses: list[tuple[int, str]]) -> Path:
    """Rows of (ability, gold answer) about a secret document, and responses by row."""
    with (folder / "rows.jsonl").open("w") as file:
        for number, (ability, gold) in enumerate(rows):
            content = (
                f"Please read the following text and answer the question below.\n\n<text>\nSECRET {number}\n</text>\n\n"
                'Which one?\n\nFormat your response as follows: "Therefore, the answer is (insert answer here)".'
            )
            row = {
                "data_source": "own",
                "prompt": [{"role": "user", "content": content}],
                "ability": ability,
                "reward_model": {"style": "rule", "ground_truth": gold},
                "extra_info": {"index": number},
            }
            file.write(json.dumps(row) + "\n")
    write_responses(folder, responses)
    return folder


def write_responses(folder: Path, responses: list[tuple[int, str]]) -> None:
    lines = [json.dumps({"index": index, "response": text}) + "\n" for index, text in responses]
    (folder / "responses.jsonl").write_text("".join(lines))


def test_gold_answers_of_real_questions_score_120_of_120(tmp_path: Path) -> None:
    if not TATQA.is_file():
        pytest.skip(f"no {TATQA}")
    rows = [json.loads(line) for line in TATQA.read_text().splitlines()]
    (tmp_path / "rows.jsonl").write_bytes(TATQA.read_bytes())
    write_responses(tmp_path, [(index, row["reward_model"]["ground_truth"]) for index, row in enumerate(rows)])
    done = subprocess.run(command(tmp_path), cwd=ROOT, capture_output=True, text=True, check=True)
    verdicts = read_lines(tmp_path / "out.jsonl")
    assert [(v["index"], v["k"], v["status"], v["reward"]) for v in verdicts] == [
        (index, 0, "scored", 1.0) for index in range(120)
    ]
    assert "120 scored, mean reward 1.0000, 0 unknown" in done.stderr and done.stdout == ""


def test_verdicts_are_in_file_order_and_go_on_after_a_kill(score: Score, tmp_path: Path) -> None:
    """Several responses to a row; half of a line is left behind."""
    rows = [("doc-qa", "yen"), ("doc-math", "12.5"), ("doc-mc", "B")]
    answers = ["yen", "12.5%", "(B)"]
    responses = [(n % 3, f"The answer is {answers[(n + (n % 5 == 0)) % 3]}.") for n in range(300)]
    write_job(tmp_path, rows, responses)
    verdicts, _ = score(tmp_path)
    assert [list(verdict) for verdict in verdicts] == [KEYS] * 300
    assert [(v["index"], v["k"]) for v in verdicts] == [(n % 3, n // 3) for n in range(300)]
    assert [v["reward"] for v in verdicts] == [0.0 if n % 5 == 0 else 1.0 for n in range(300)]
    assert all(v["rule"] and v["why"] and v["judge"] is None for v in verdicts)

    output = tmp_path / "out.jsonl"
    whole = output.read_bytes()
    cut = whole.index(b"\n", len(whole) // 2) + 20
    output.write_bytes(whole[:cut])
    _, said = score(tmp_path)
    assert output.read_bytes() == whole
    assert f"{300 - whole[:cut].count(10)} written" in said
    _, said = score(tmp_path)
    assert "0 written; 300 scored" in said
    write_responses(tmp_path, responses[:10])
    verdicts, said = score(tmp_path)
    assert len(verdicts) == 10 and "out.jsonl.1" in said
    assert (tmp_path / "out.jsonl.1").read_bytes() == whole


def test_the_judge_is_asked_where_the_rule_gave_less_and_never_sees_the_document(score: Score, tmp_path: Path) -> None:
    rows = [("doc-qa", "it agrees"), ("doc-qa", "it differs"), ("doc-mc", "B")]
    texts = ["The answer is it agrees.", "The answer is another.", "No idea.", "The answer is another."]
    responses = [(0, text) for text in texts] + [(1, texts[1]), (2, "The answer is (C).")]
    write_job(tmp_path, rows, responses)
    with JudgeServer().serving() as server:
        verdicts, said = score(tmp_path, "--judge-url", server.url, "--judge-model", "m")
    found = [(v["reward"], v["judge"]) for v in verdicts]
    assert found == [(1.0, None), (1.0, "yes"), (0.0, None), (1.0, "yes"), (0.0, "no"), (0.0, None)]
    assert "judge: " in said
    # Asked at a time, the same question is sent once (judge/test_client.py); here one answer may come before the other.
    assert len(set(server.bodies)) == 2
    for body in server.bodies:
        assert json.loads(body)["model"] == "m"
        assert "Which one?" in body and "SECRET" not in body and "Format your response" not in body


def test_a_judge_that_cannot_say_makes_unknown_and_exit_code_3(score: Score, tmp_path: Path) -> None:
    write_job(tmp_path, [("doc-qa", "yen")], [(0, "The answer is yen."), (0, "The answer is euro.")])
    with JudgeServer([UNREADABLE]).serving() as server:
        verdicts, said = score(tmp_path, "--judge-url", server.url, code=3)
    assert [(v["status"], v["reward"]) for v in verdicts] == [("scored", 1.0), ("unknown", None)]
    assert verdicts[1]["extracted"] == "euro" and "without one verdict" in verdicts[1]["why"]
    assert "1 scored, mean reward 1.0000, 1 unknown" in said
    down, _ = score(tmp_path, "--judge-url", server.url, "--judge-deadline-s", 4, "--overwrite", code=3)
    assert [v["status"] for v in down] == ["scored", "unknown"] and down[1]["reward"] is None


def test_ctrl_c_leaves_whole_lines_and_the_same_command_goes_on(score: Score, tmp_path: Path) -> None:
    write_job(tmp_path, [("doc-qa", "it differs")], [(0, f"The answer is p{n}.") for n in range(40)])
    with JudgeServer(delay_s=(0.2, 0.2)).serving() as server:
        options = ["--judge-url", server.url, "--judge-concurrency", "2"]
        process = subprocess.Popen(command(tmp_path, *options), cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            while len(read_lines(tmp_path / "out.jsonl")) < 3:
                assert process.poll() is None
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()
        done = (tmp_path / "out.jsonl").read_bytes()
        assert done.endswith(b"\n") and done.count(b"\n") < 40
        server.delay_s = (0.0, 0.0)
        verdicts, _ = score(tmp_path, *options)
    assert (tmp_path / "out.jsonl").read_bytes().startswith(done)
    assert [(v["k"], v["reward"], v["judge"]) for v in verdicts] == [(n, 0.0, "no") for n in range(40)]
