"""Rows of each window, counted before a run: generated ones too, and as they are trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridflow.config.sections import Config
from hybridflow.preflight import model
from hybridflow.preflight.phases import check_phase_files, check_windows
from hybridflow.preflight.subject import Finding, Subject

TINY = Path(__file__).parents[3] / "configs/models/tiny"
WINDOWS = [{"name": "short", "window": [0, 100], "steps": 2}, {"name": "long", "window": [100, 200]}]


def build_subject(data: dict[str, Any], phases: list[dict[str, Any]] = WINDOWS) -> Subject:
    values = {
        "model": {"path": str(TINY), "init": "seeded"},
        "data": {"max_prompt_tokens": 200, **data},
        "eval": {"num_prompts": 0},
        "curriculum": {"phases": phases},
    }
    return Subject(Config.model_validate(values))


@pytest.mark.parametrize(
    ("synth", "level", "text"),
    [
        ({"doc_tokens": 128}, "error", "rows per window: short (0, 100]: 0, long (100, 200]: 12. Remedy: move"),
        ({"doc_tokens": 64}, "error", "rows per window: short (0, 100]: 12, long (100, 200]: 0. Remedy: move"),
        ({"doc_tokens": 128, "num_train": 10**6}, "fact", "phases: too many rows to count tokens here; train counts"),
    ],
)  # fmt: skip
def test_generated_rows_are_counted(
    synth: dict[str, Any], level: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "TOKENS_S", 100.0)
    (found,) = check_windows(build_subject({"synth": {"num_train": 12, **synth}}))
    assert found.level == level and found.text.startswith(text)


def write_rows(path: Path, num_words: int) -> str:
    row = {
        "data_source": "s",
        "ability": "doc-qa",
        "prompt": [{"role": "user", "content": f"<text>\n{'amber ' * num_words}\n</text>\nWhich?"}],
        "reward_model": {"style": "rule", "ground_truth": "amber"},
    }
    path.write_text(json.dumps(row) + "\n")
    return str(path)


def test_a_document_that_is_cut_counts_as_what_is_left_of_it(tmp_path: Path) -> None:
    short, long = write_rows(tmp_path / "short.jsonl", 20), write_rows(tmp_path / "long.jsonl", 500)
    phases = [WINDOWS[0] | {"train_path": short}, WINDOWS[1] | {"train_path": long}]
    (found,) = check_windows(build_subject({"overlong": "truncate_middle"}, phases))
    assert found == Finding("fact", "rows per window: short (0, 100]: 1, long (100, 200]: 1")


def test_a_file_that_cannot_be_read_is_told_with_the_key_of_its_phase(tmp_path: Path) -> None:
    phases = [WINDOWS[0], WINDOWS[1] | {"train_path": str(tmp_path / "none.jsonl")}]
    errors = [one.text for one in check_phase_files(build_subject({}, phases)) if one.level == "error"]
    assert len(errors) == 1
    assert errors[0].startswith("curriculum.phases.1.train_path of phase 'long': ") and "no such file" in errors[0]
