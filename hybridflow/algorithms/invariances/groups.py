"""Made-up groups of completions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hybridflow.types import Completion, Group, Prompt, Scored, ScoredCompletion, TokenColumns, Unknown, Verdict

ORDINARY: tuple[tuple[float | None, ...], ...] = (
    (1.0, 0.0, 0.0, 1.0),
    (0.25, None, 1.0, 0.0),
    (0.0, 0.0, 1.0, 0.0),
    (0.5, 0.25, 0.0, 1.0),
)
"""Rewards of each group as a step of training has them; None: unknown."""
EXTREME: tuple[tuple[float | None, ...], ...] = (
    (1.0, 1.0, 1.0, 1.0),
    (0.0, 0.0, 0.0, 0.0),
    (0.3, 0.3 + 1e-9, 0.3, 0.3),
    (None, 1.0, None, None),
    (None, None, None, None),
)
"""Rewards that are equal, or of which too few are known: filters leave them out, if they are not switched off."""


def make_groups(rewards: Sequence[Sequence[float | None]]) -> list[Group]:
    """Groups of two tasks, with completions of 1 to 9 tokens."""
    return [_make_group(number, of_group) for number, of_group in enumerate(rewards)]


def _make_group(number: int, rewards: Sequence[float | None]) -> Group:
    prompt = Prompt(
        prompt_id=f"train-{number:06d}",
        token_ids=list(range(3 + number)),
        data_source=("synth_easy", "docmath")[number % 2],
        ability="doc-qa",
        ground_truth="yen",
    )
    group_id = f"t00001-g{number:04d}"
    members = [_make_member(prompt, group_id, index, reward) for index, reward in enumerate(rewards)]
    return Group(group_id=group_id, prompt=prompt, members=members)


def _make_member(prompt: Prompt, group_id: str, index: int, reward: float | None) -> ScoredCompletion:
    num_tokens = 1 + (5 * index + len(prompt.token_ids)) % 9
    verdict: Verdict = Unknown(why="made up")
    if reward is not None:
        verdict = Scored(value=reward, rule="made up", extracted="yen", why="made up")
    completion = Completion(
        completion_id=f"{group_id}-c{index:02d}",
        group_id=group_id,
        prompt_id=prompt.prompt_id,
        index=index,
        tokens=TokenColumns(ids=list(range(num_tokens)), rollout_logprobs=[-0.5] * num_tokens),
        text="the answer is yen",
        finish_reason="stop",
        policy_version=0,
        prompt_tokens=len(prompt.token_ids),
        cached_tokens=0,
        temperature=1.0,
    )
    return ScoredCompletion(completion=completion, verdict=verdict, scored_by="made up")


def turn(group: Group) -> Group:
    """The same group with its members in reverse."""
    return msgspec.structs.replace(group, members=group.members[::-1])
