"""Rows that cannot be used: training names them and starts nothing; evaluation counts them as unknown."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from hybridflow.errors import DataError
from hybridflow.loop.evaluation import build_unknown_groups
from hybridflow.loop.step import build_requests
from hybridflow.preflight.data import check_golds, check_rows
from hybridflow.preflight.inputs import load_inputs
from hybridflow.preflight.subject import Subject
from hybridflow.preflight.verifiers import check_verifiers
from hybridflow.recording.accuracy import compute_accuracy, compute_bounds
from hybridflow.types import Unknown
from tests.builders import build_group
from tests.unit.loop.fakes import build_config

GOOD: dict[str, Any] = {
    "data_source": "mine",
    "prompt": [{"role": "user", "content": "What is the rate ?"}],
    "ability": "doc-mc",
    "reward_model": {"style": "rule", "ground_truth": "B"},
}
NO_GOLD = GOOD | {"reward_model": {"style": "rule", "ground_truth": ""}}
NO_ROLE = GOOD | {"prompt": [{"role": "robot", "content": "x"}]}
NO_CHOICE = GOOD | {"reward_model": {"style": "rule", "ground_truth": "E"}}
HALF = GOOD | {"data_source": "\ud83d"}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def inputs_of(tmp_path: Path, train: list[dict[str, Any]], test: list[dict[str, Any]], num_prompts: int = 4) -> Any:
    config = build_config(
        tmp_path,
        data__train_path=str(write(tmp_path / "train.jsonl", *train)),
        data__test_path=str(write(tmp_path / "test.jsonl", *test)),
        eval__num_prompts=num_prompts,
    )
    return config, lambda: load_inputs(config, None)


def test_training_names_all_of_them_at_once(tmp_path: Path) -> None:
    config, load = inputs_of(tmp_path, [GOOD, NO_GOLD, NO_ROLE, NO_CHOICE, HALF], [GOOD] * 4)
    with pytest.raises(DataError) as caught:
        load()
    told = str(caught.value)
    assert "4 of 5 rows cannot be used" in told
    expected = [
        "row 1, column 'reward_model.ground_truth'",
        "row 2, column 'prompt[0].role': got str 'robot'",
        "row 3: the gold answer 'E' names none of the choices A-D",
        "row 4: '\\ud83d' is half of",
    ]
    for words in expected:
        assert words in told
    errors = [finding.text for finding in [*check_rows(Subject(config)), *check_golds(Subject(config))]
              if finding.level == "error"]  # fmt: skip
    assert len(errors) == 4


def test_evaluation_counts_them_as_unknown(tmp_path: Path) -> None:
    """Four of five test rows are evaluated: two that can be, two that cannot; the gold "E" is left to its rule."""
    config, load = inputs_of(tmp_path, [GOOD], [GOOD, NO_GOLD, NO_CHOICE, HALF, GOOD])
    inputs = load()
    (test,) = inputs.eval_sets
    assert [prompt.prompt_id for prompt in test.prompts] == ["test-000000", "test-000002"]
    assert sorted(test.unusable) == ["test-000001", "test-000003"]
    assert "2 test rows cannot be used and count as unknown; the first:" in " ".join(inputs.notes)
    findings = [*check_rows(Subject(config)), *check_golds(Subject(config))]
    assert [finding.level for finding in findings if finding.level != "fact"] == ["warning"] * 3
    assert [finding.level for finding in check_verifiers(Subject(config))] == ["fact"]  # by a row that can be used
    groups = build_unknown_groups("e00001", test.unusable, version=1)
    verdicts = [group.members[0].verdict for group in groups]
    assert all(isinstance(verdict, Unknown) and "test.jsonl, line" in verdict.why for verdict in verdicts)
    (request,) = build_requests("e00001", test.prompts[:1], 2)
    known = [build_group(request, [1.0, 0.0])]
    assert compute_accuracy(known + groups) == 0.5 and math.isnan(compute_accuracy(groups))
    bounds = compute_bounds(known + groups)
    assert (bounds.low, bounds.high, bounds.num_unknown) == (0.25, 0.75, 2)


def test_records_refer_to_rows_and_hold_questions(tmp_path: Path) -> None:
    _, load = inputs_of(tmp_path, [GOOD, GOOD], [GOOD], num_prompts=1)
    inputs = load()
    assert [prompt.question for prompt in inputs.train.prompts] == ["What is the rate ?"] * 2
    reference = inputs.documents["train-000001"]
    assert (reference.file, reference.row) == (str(tmp_path / "train.jsonl"), 1)
    assert inputs.documents["test-000000"].file == str(tmp_path / "test.jsonl")
