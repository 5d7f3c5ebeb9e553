"""Order of prompts: every prompt once per epoch, whatever the size of steps, and on from where a checkpoint is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridflow.curriculum.source import SavedSource, ShuffledEpochs, restore_source, save_source
from hybridflow.errors import CheckpointError
from tests.builders import build_prompt


def source_of(num_prompts: int, seed: int = 0) -> ShuffledEpochs:
    prompts = [build_prompt(f"p{n}") for n in range(num_prompts)]
    return ShuffledEpochs(prompts, ("hybridflow.order", "toy", seed))


def take(source: ShuffledEpochs, num_prompts: int) -> list[str]:
    return [prompt.prompt_id for prompt in source.next(num_prompts)]


@settings(max_examples=40)
@given(num_rows=st.integers(1, 17), num_prompts=st.integers(1, 23), seed=st.integers(0, 5))
def test_each_epoch_has_every_prompt_once(num_rows: int, num_prompts: int, seed: int) -> None:
    source = source_of(num_rows, seed)
    num_steps = 3 * num_rows  # whole epochs: 3 * num_rows * num_prompts prompts in all
    walk = [prompt_id for _ in range(num_steps) for prompt_id in take(source, num_prompts)]
    for start in range(0, len(walk), num_rows):
        assert len(set(walk[start : start + num_rows])) == num_rows


def test_the_order_is_that_of_runs_that_exist() -> None:
    """Two epochs and a part: checkpoints of earlier versions go on in this order."""
    expected = ["p0", "p2", "p3", "p1", "p4", "p1", "p0", "p2", "p4", "p3", "p2", "p0"]
    assert take(source_of(5), 12) == expected


def test_seed_and_epoch_change_the_order() -> None:
    source = source_of(20)
    first, second = take(source, 20), take(source, 20)
    assert first != second and first != take(source_of(20, seed=1), 20)
    assert Counter(first) == Counter(second)


def test_a_batch_may_be_larger_than_the_data_set() -> None:
    assert Counter(take(source_of(3), 7)).most_common()[0][1] == 3


@pytest.mark.parametrize("num_taken", [0, 1, 9, 10, 23])
def test_a_restored_source_goes_on_where_the_saved_one_was(num_taken: int) -> None:
    straight, again, older = source_of(10), source_of(10), source_of(10)
    straight.next(num_taken)
    restore_source(again, save_source(straight), num_taken=99, path=Path("state.json"))
    restore_source(older, None, num_taken=num_taken, path=Path("state.json"))
    assert take(straight, 7) == take(again, 7) == take(older, 7)


class OtherSource(ShuffledEpochs):
    name = "phases"


def test_the_state_of_another_source_is_refused() -> None:
    saved = save_source(source_of(3))
    other = OtherSource([], ())
    for found in (saved, None):
        with pytest.raises(CheckpointError, match=r"state.json: source.name is 'shuffled_epochs', .* from 'phases'"):
            restore_source(other, found, num_taken=0, path=Path("state.json"))


def test_the_state_over_other_rows_is_refused() -> None:
    saved = save_source(source_of(3), rows="before")
    restore_source(source_of(3), saved, num_taken=0, path=Path("state.json"), rows="before")
    restore_source(
        source_of(3), save_source(source_of(3)), num_taken=0, path=Path("state.json"), rows="now"
    )  # an older one
    with pytest.raises(CheckpointError, match=r"state.json: the rows .* has changed since. Remedy: .*data.train_path"):
        restore_source(source_of(3), saved, num_taken=0, path=Path("state.json"), rows="now")


@pytest.mark.parametrize("state", [{}, {"num_taken": -1}, {"num_taken": True}, {"num_taken": 1, "x": 2}])
def test_a_state_that_is_none_is_refused(state: dict[str, Any]) -> None:
    saved = SavedSource(name="shuffled_epochs", state=state)
    with pytest.raises(CheckpointError, match=r"state.json: source.state: expected .*num_taken.*Remedy: "):
        restore_source(source_of(3), saved, num_taken=0, path=Path("state.json"))
