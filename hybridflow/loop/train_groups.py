"""Groups of training steps: partial ones of earlier steps first, then prompts that the curriculum hands out."""

from __future__ import annotations

from collections.abc import Sequence

from hybridflow.config.sections import Config
from hybridflow.curriculum.build import Curriculum
from hybridflow.curriculum.source import SavedSource, save_source
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
        self._sampling = train_sampling(config)

    def collect(self, step: int, version: int) -> Collected:
        """Groups of `step`, decoded by policy `version` and scored; the others are kept for the next step."""
        prefix, source = f"t{step:05d}", self._curriculum.source
        carried = self.kept.groups
        fresh = source.next(self._rules.num_fresh(len(carried)))
        plan = self._rules.plan(prefix, carried, fresh, version, self._num_completions)
        num_begun = plan.counts.num_started

        def begin_more(num_groups: int) -> list[GroupRequest]:
            nonlocal num_begun
            requests = build_requests(prefix, source.next(num_groups), self._num_completions, first=num_begun)
            num_begun += len(requests)
            return requests

        refill = Refill(self._curriculum.rule, begin_more)
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
        return save_source(self._curriculum.source)
