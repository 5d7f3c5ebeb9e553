"""Rows above `data.max_prompt_tokens`, by `data.overlong`: told, counted, and within the limit where they train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybridflow.data.chat_template import build_prompt
from hybridflow.preflight.inputs import load_inputs
from hybridflow.preflight.model import check_prompts
from hybridflow.preflight.subject import Subject
from tests.unit.loop.fakes import build_config


def write(path: Path, *num_words: int, word: str = "bread ") -> str:
    rows = [
        {
            "data_source": "mine",
            "prompt": [{"role": "user", "content": build_prompt(word * number, "What is the price ?")}],
            "ability": "doc-qa",
            "reward_model": {"style": "rule", "ground_truth": "yen"},
        }
        for number in num_words
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("overlong", "lengths", "counted", "note"),
    [
        ("drop", 2, {"train_rows_dropped": 1}, "1 of 3 train rows are left out: their prompts are longer"),
        (
            "truncate_middle",
            3,
            {"train_rows_dropped": 0, "train_rows_truncated": 1},
            "1 of 3 train rows lose the middle of their documents: their prompts are longer",
        ),
    ],
)
def test_rows_above_the_limit(tmp_path: Path, overlong: str, lengths: int, counted: dict[str, int], note: str) -> None:
    config = build_config(
        tmp_path,
        data__train_path=write(tmp_path / "train.jsonl", 2, 300, 3),
        data__test_path=write(tmp_path / "test.jsonl", 2, 2),
        data__max_prompt_tokens=100,
        data__overlong=overlong,
        eval__num_prompts=2,
    )
    inputs = load_inputs(config, None)
    found = [len(prompt.token_ids) for prompt in inputs.train.prompts]
    assert len(found) == lengths and max(found) <= 100
    assert {name: inputs.counts[name] for name in counted} == counted and "test_rows_truncated" not in inputs.counts
    assert any(one.startswith(note) for one in inputs.notes)
    findings = [finding for finding in check_prompts(Subject(config)) if finding.level != "fact"]
    assert [finding.level for finding in findings] == ["warning"] and "row 1: the prompt has" in findings[0].text
