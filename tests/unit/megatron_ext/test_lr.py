"""Learning rate schedules against values worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ext.optimizer.lr import LRSchedule, learning_rate


def rates(num_steps: int, **options: Any) -> list[float]:
    schedule = LRSchedule(**options)
    return [learning_rate(schedule, step) for step in range(1, num_steps + 1)]


def test_constant_with_and_without_warmup() -> None:
    assert rates(3, peak=2.0) == [2.0, 2.0, 2.0]
    assert rates(3, peak=2.0, warmup_steps=1) == [2.0, 2.0, 2.0]
    assert rates(6, peak=2.0, warmup_steps=4) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_linear_reaches_its_minimum_at_the_last_step() -> None:
    """Peak 10 at step 2, then 9/4 of it less each step down to 1 at step 6, and no further."""
    found = rates(8, peak=10.0, kind="linear", warmup_steps=2, total_steps=6, min_ratio=0.1)
    assert found == pytest.approx([5.0, 10.0, 7.75, 5.5, 3.25, 1.0, 1.0, 1.0])


def test_cosine_by_hand() -> None:
    """p = 0, 1/3, 2/3, 1: (1 + cos) / 2 = 1, 3/4, 1/4, 0. With a minimum of 0.2: 1, 0.8, 0.4, 0.2."""
    assert rates(4, peak=1.0, kind="cosine", total_steps=4) == pytest.approx([1.0, 0.75, 0.25, 0.0])
    found = rates(5, peak=1.0, kind="cosine", warmup_steps=2, total_steps=5, min_ratio=0.2)
    assert found == pytest.approx([0.5, 1.0, 0.8, 0.4, 0.2])


def test_a_run_of_warmup_alone_ends_at_the_peak() -> None:
    assert rates(2, peak=1.0, kind="cosine", warmup_steps=2, total_steps=2) == [0.5, 1.0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"peak": 0.0}, "peak = 0.0"),
        ({"peak": 1.0, "kind": "linear", "warmup_steps": 5, "total_steps": 4}, "total_steps = 4"),
        ({"peak": 1.0, "kind": "linear"}, "total_steps = 0"),
        ({"peak": 1.0, "min_ratio": 1.5}, "min_ratio = 1.5"),
        ({"peak": 1.0, "kind": "square"}, "kind = 'square'"),
    ],
)
def test_impossible_schedules_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LRSchedule(**options)


def test_steps_are_numbered_from_one() -> None:
    with pytest.raises(ValueError, match="step = 0"):
        learning_rate(LRSchedule(peak=1.0), 0)
