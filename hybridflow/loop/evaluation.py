"""Greedy accuracy on sets of prompts, by the same engines, stream and verifiers as training."""

from __future__ import annotations

from collections.abc import Sequence

from hybridflow.data.dataset import EvalSet
from hybridflow.loop.collect import Collector
from hybridflow.loop.step import build_requests, plan_all
from hybridflow.types import Completion, Group, Prompt, SamplingParams, ScoredCompletion, Unknown


class Evaluation:
    """Decodes the prompts of all sets in one go, without randomness.

    Args:
        sets: None of them: evaluation is off.
        sampling: That of training.
    """

    def __init__(self, sets: Sequence[EvalSet], collector: Collector, sampling: SamplingParams) -> None:
        self.sets = sets
        self._collector = collector
        self._sampling = greedy(sampling)

    def collect(self, step: int, version: int) -> dict[str, list[Group]]:
        """By name of each set: a group of one completion per prompt, then one per row that has no prompt."""
        prefix = f"e{step:05d}"
        prompts = [prompt for one in self.sets for prompt in one.prompts]
        plan = plan_all(build_requests(prefix, prompts, 1))
        decoded = self._collector.collect("eval", step, plan, self._sampling).groups
        found: dict[str, list[Group]] = {}
        for one in self.sets:
            own, decoded = decoded[: len(one.prompts)], decoded[len(one.prompts) :]
            found[one.name] = own + build_unknown_groups(prefix, one.unusable, version)
        return found


def greedy(sampling: SamplingParams) -> SamplingParams:
    """Sampling without randomness, under the same stop conditions."""
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
