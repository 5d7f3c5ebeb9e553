"""Greedy accuracy on the test prompts, by the same engines, stream and verifiers as training."""

from __future__ import annotations

import math

import msgspec

from hybridflow.types import Completion, Group, Prompt, SamplingParams, Scored, ScoredCompletion, Unknown


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


class Bounds(msgspec.Struct, frozen=True):
    """Between what the mean reward lies, whatever the unknown verdicts would have been."""

    low: float
    """With each unknown as 0."""
    high: float
    """With each unknown as 1."""
    num_unknown: int
    num_completions: int

    def describe(self) -> str:
        """For a user; empty where everything is known."""
        if not self.num_unknown:
            return ""
        return f", {self.num_unknown} of {self.num_completions} unknown: between {self.low:.3f} and {self.high:.3f}"


def compute_bounds(groups: list[Group]) -> Bounds:
    """Over all completions. Known ones are no sample of all, so their mean may be far from the truth within these."""
    verdicts = [member.verdict for group in groups for member in group.members]
    rewards = [verdict.value for verdict in verdicts if isinstance(verdict, Scored)]
    num_unknown, total = len(verdicts) - len(rewards), max(len(verdicts), 1)
    known = math.fsum(rewards)
    return Bounds(known / total, (known + num_unknown) / total, num_unknown, len(verdicts))


def compute_accuracy(groups: list[Group]) -> float:
    """Mean reward over completions with a verdict; not-a-number where none has one."""
    rewards = [m.verdict.value for group in groups for m in group.members if isinstance(m.verdict, Scored)]
    return sum(rewards) / len(rewards) if rewards else float("nan")
