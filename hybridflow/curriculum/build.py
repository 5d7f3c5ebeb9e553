"""The choice of source and step rule of a run."""

from __future__ import annotations

from dataclasses import dataclass

from hybridflow.algorithms.algorithm import build_algorithm
from hybridflow.algorithms.spec import algorithm_spec
from hybridflow.config.sections import Config
from hybridflow.curriculum.source import PromptSource, ShuffledEpochs
from hybridflow.curriculum.step_rule import EveryCompleteGroup, StepRule, TeachingGroups
from hybridflow.data.dataset import PromptDataset


@dataclass(frozen=True)
class Curriculum:
    """Source of prompts and step rule of a run."""

    source: PromptSource
    rule: StepRule


def build_curriculum(config: Config, train: PromptDataset) -> Curriculum:
    """Shuffled epochs of the training prompts, and the step rule."""
    source = ShuffledEpochs(train.prompts, ("hybridflow.order", train.name, config.run.seed))
    return Curriculum(source, build_step_rule(config))


def build_step_rule(config: Config) -> StepRule:
    """Steps end with enough complete groups or, with dynamic sampling, with enough that teach."""
    section = config.rollout
    if not section.dynamic_sampling:
        return EveryCompleteGroup()
    algorithm = build_algorithm(algorithm_spec(config))
    return TeachingGroups(algorithm.reason_to_drop, section.count_under_way, section.max_generation_batches)
