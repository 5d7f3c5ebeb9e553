"""Greedy accuracy on the test prompts, by the same engines, stream and verifiers as training."""

from __future__ import annotations

from hybridflow.types import Group, SamplingParams, Scored


def greedy(sampling: SamplingParams) -> SamplingParams:
    """The same stop conditions, without randomness."""
    return SamplingParams(
        temperature=0.0,
        max_new_tokens=sampling.max_new_tokens,
        stop_token_ids=sampling.stop_token_ids,
        stop=sampling.stop,
    )


def compute_accuracy(groups: list[Group]) -> float:
    """Mean reward over completions with a verdict; not-a-number where none has one."""
    rewards = [m.verdict.value for group in groups for m in group.members if isinstance(m.verdict, Scored)]
    return sum(rewards) / len(rewards) if rewards else float("nan")
