"""Groups of training steps: partial ones of earlier steps first, then prompts that the curriculum hands out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hybridflow.config.sections import Config
from hybridflow.curriculum.build import Curriculum
from hybridflow.curriculum.source import PromptSource, SavedSource, save_source
from hybridflow.loop.collect import Collector, Refill
from hybridflow.loop.kept_groups import GroupStore, KeptGroups
from hybridflow.loop.step import PartialRollouts, build_requests, plan_all
from hybridflow.types import Collected, GroupRequest, PartialGroup, Prompt, SamplingParams


def train_sampling(config: Config) -> SamplingParams:
    """How training draws completions."""
    return SamplingParams(
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        max_new_tokens=config.rollout.max_new_tokens,
        stop=config.rollout.stop,
        returns_sampling_mask=config.rollout.top_p < 1,
        returns_experts=config.algorithm.routing_replay == "engine",
    )


class Replacements:
    """Groups that a step begins in place of those that do not count.

    Each has what the source gives for the prompt of the group it replaces: one of the same task where it balances them.
    A place in which `max_tries` groups did not count goes to whatever the source has next: without that bound a task
    that teaches nothing would use up the tries of the whole step, one after the other.
    """

    def __init__(
        self, source: PromptSource, max_tries: int, build: Callable[[Sequence[Prompt], int], list[GroupRequest]]
    ) -> None:
        """`build`: requests for prompts, given the number of those before them."""
        self._source, self._max_tries, self._build = source, max_tries, build
        self._num_begun = 0
        self._tries: dict[str, int] = {}
        """By id, groups of its place up to it; 1 of any other."""

    def begin(self, num_groups: int, rejected: Sequence[GroupRequest]) -> list[GroupRequest]:
        """Requests of so many groups; the first are in place of `rejected`, as far as these have tries left."""
        places = [group for group in rejected if self._tries.get(group.group_id, 1) < self._max_tries]
        prompts = self._source.replace([group.prompt for group in places]) if places else []
        if len(places) < num_groups:
            prompts = [*prompts, *self._source.next(num_groups - len(places))]
        requests = self._build(prompts, self._num_begun)
        self._num_begun += len(requests)
        for group, request in zip(places, requests, strict=False):
            self._tries[request.group_id] = self._tries.get(group.group_id, 1) + 1
        return requests


class TrainGroups:
    """Plans each step, collects its groups, and shows them to the source of prompts.

    Args:
        kept: Groups that were begun in earlier steps and not trained on.
    """

    def __init__(
        self,
        config: Config,
        curriculum: Curriculum,
        collector: Collector,
        kept: GroupStore | None = None,
    ) -> None:
        self.kept = kept or KeptGroups()
        self._take(config)
        self._curriculum = curriculum
        self._collector = collector

    def begin_phase(self, config: Config) -> list[PartialGroup]:
        """Takes sizes and sampling of a phase; returns the groups of the phase before, which are given up.

        They were drawn from another distribution, of other sizes, and their prompts are of another window.
        """
        self._take(config)
        given_up = self.kept.groups
        self.kept.replace([])
        return given_up

    def _take(self, config: Config) -> None:
        self._rules = PartialRollouts.of(config.rollout, config.train.prompts_per_step)
        self._num_completions = config.algorithm.num_completions
        self._max_tries = config.rollout.max_generation_batches
        self._sampling = train_sampling(config)

    def collect(self, step: int, version: int) -> Collected:
        """Groups of `step`, decoded by policy `version` and scored; the others are kept for the next step."""
        prefix, source = f"t{step:05d}", self._curriculum.source
        carried = self.kept.groups
        fresh = source.next(self._rules.num_fresh(len(carried)))
        plan = self._rules.plan(prefix, carried, fresh, version, self._num_completions)

        def build(prompts: Sequence[Prompt], num_begun: int) -> list[GroupRequest]:
            first = plan.counts.num_started + num_begun
            return build_requests(prefix, prompts, self._num_completions, first=first)

        refill = Refill(self._curriculum.rule, Replacements(source, self._max_tries, build).begin)
        collected = self._collector.collect("train", step, plan, self._sampling, refill)
        self.kept.replace(collected.carried)
        source.observe(collected.groups)
        return collected

    def measure(self, step: int, prompts: Sequence[Prompt]) -> Collected:
        """Groups of `prompts` as training would draw them after `step`, which are not trained on."""
        plan = plan_all(build_requests(f"m{step:05d}", prompts, self._num_completions))
        return self._collector.decode(plan, self._sampling)

    def save_source(self) -> SavedSource:
        """State of the source of prompts, for a checkpoint."""
        return save_source(self._curriculum.source, self._curriculum.rows)
