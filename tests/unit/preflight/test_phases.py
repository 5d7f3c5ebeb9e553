"""`hybridflow check` counts the rows of windows as training takes them: at their borders, and above the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybridflow.config.sections import Config
from hybridflow.curriculum.windows import build_phases
from hybridflow.preflight.inputs import load_inputs
from hybridflow.preflight.phases import check_windows
from hybridflow.preflight.subject import Subject
from tests.unit.loop.fakes import build_config
from tests.unit.preflight.test_overlong_rows import write


def lengths_of(config: Config) -> list[int]:
    return [len(prompt.token_ids) for prompt in load_inputs(config, None).train.prompts]


def check(tmp_path: Path, windows: list[list[int]], *num_digits: int, **changes: Any) -> tuple[str, list[int] | None]:
    """Finding of the check, and the rows that phases get in training; None where they are refused.

    Rows have so many digits, a token each.
    """
    path = write(tmp_path / "train.jsonl", *num_digits, word="7")
    phases: list[dict[str, Any]] = [{"name": f"p{n}", "window": window} for n, window in enumerate(windows)]
    for phase in phases[:-1]:
        phase["steps"] = 1
    values = {"data__train_path": path, "eval__num_prompts": 0, "curriculum__phases": phases} | changes
    config = build_config(tmp_path, **values)
    (finding,) = check_windows(Subject(config))
    trains = {name: one.prompts for name, one in load_inputs(config, None).trains.items()}
    if finding.level == "error":
        return finding.text, None
    return finding.text, [len(phase.prompts) for phase in build_phases(config, trains)]


def test_a_row_of_l_tokens_is_in_the_window_that_ends_there_and_one_more_token_in_the_next(tmp_path: Path) -> None:
    """Rows of n to n + 3 tokens, one each, and n + 1 as a border."""
    digits = (5, 6, 7, 8)
    path = write(tmp_path / "lengths.jsonl", *digits, word="7")
    lengths = lengths_of(build_config(tmp_path, data__train_path=path, eval__num_prompts=0))
    first = lengths[0]
    assert lengths == list(range(first, first + 4)), "the test needs rows one token apart"
    border = first + 1
    told, trained = check(tmp_path, [[0, border], [border, border + 1]], *digits)
    assert told == f"rows per window: p0 (0, {border}]: 2, p1 ({border}, {border + 1}]: 1; in none: 1"
    assert trained == [2, 1]
    told, trained = check(tmp_path, [[0, border], [border, first + 3]], *digits)
    assert told == f"rows per window: p0 (0, {border}]: 2, p1 ({border}, {first + 3}]: 2"
    assert trained == [2, 2]
    told, trained = check(tmp_path, [[0, first + 3], [first + 3, first + 4]], *digits)
    assert f"p0 (0, {first + 3}]: 4, p1 ({first + 3}, {first + 4}]: 0. Remedy: move the windows" in told
    assert trained is None and "prompts are counted with their chat template" in told


@pytest.mark.parametrize(("overlong", "counts", "in_none"), [("drop", [2, 1], ""), ("truncate_middle", [2, 2], "")])
def test_rows_above_the_limit_are_counted_as_they_train(
    tmp_path: Path, overlong: str, counts: list[int], in_none: str
) -> None:
    """One row of 300 digits is left out, or cut to the limit of 150 tokens, where the last window ends."""
    changes = {"data__max_prompt_tokens": 150, "data__overlong": overlong}
    told, trained = check(tmp_path, [[0, 60], [60, 150]], 2, 3, 60, 300, **changes)
    assert told == f"rows per window: p0 (0, 60]: {counts[0]}, p1 (60, 150]: {counts[1]}{in_none}"
    assert trained == counts
