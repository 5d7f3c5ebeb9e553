"""Greedy accuracy on the test prompts, by the same engines, stream and verifiers as training."""

from __future__ import annotations

from hybridflow.types import Completion, Group, Prompt, SamplingParams, ScoredCompletion, Unknown


def greedy(sampling: SamplingParams) -> SamplingParams:
    """The same stop conditions, without randomness."""
    return SamplingParams(
        temperature=0.0,
        max_new_tokens=sampling.max_new_tokens,
        stop_token_ids=sampling.stop_token_ids,
        stop=sampling.stop,
    )


def build_unknown_groups(prefix: str, unusable: dict[str, str], version: int) -> list[Group]:
    """Groups of the test rows that have no prompt, `unusable` by the id it would have: nothing is decoded for them."""
    groups: list[Group] = []
    for prompt_id, why in unusable.items():
        group_id = f"{prefix}-{prompt_id}"
        completion = Completion(
            completion_id=f"{group_id}-c00",
            group_id=group_id,
            prompt_id=prompt_id,
            index=0,
            token_ids=[],
            rollout_logprobs=[],
            text="",
            finish_reason="stop",
            policy_version=version,
            prompt_tokens=0,
            cached_tokens=0,
        )
        prompt = Prompt(prompt_id=prompt_id, token_ids=[], data_source="", ability="", ground_truth="")
        member = ScoredCompletion(completion=completion, verdict=Unknown(why=why), scored_by="")
        groups.append(Group(group_id=group_id, prompt=prompt, members=[member]))
    return groups
