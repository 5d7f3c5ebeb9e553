"""Remains of a configuration with mistakes: findings about them are true of what the files say."""

from __future__ import annotations

from hybridflow.preflight.load import load_run

LONG = [
    'model.path="m"',
    "eval.num_prompts=0",
    "data.max_prompt_tokens=60000",
    "train.max_tokens_per_micro_batch=90000",
]


def test_a_section_that_is_left_out_is_not_told_of_with_its_defaults() -> None:
    """The window that was set would be long enough; the default in its place is not."""
    _, problems = load_run([], [*LONG, "rollout.context_tokens=90000", "rollout.max_generation_batches=5"])
    assert len(problems) == 1 and "rollout.max_generation_batches (5)" in problems[0]


def test_what_else_is_wrong_is_told_beside_it() -> None:
    _, problems = load_run([], [*LONG, "rollout.max_generation_batches=5", "train.mini_batch_prompts=99"])
    assert len(problems) == 3
    assert "rollout.context_tokens (32768)" in "".join(problems) and "train.mini_batch_prompts (99)" in "".join(
        problems
    )
