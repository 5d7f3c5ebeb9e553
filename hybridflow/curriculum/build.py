"""The choice of source and step rule of a run."""

from __future__ import annotations

from dataclasses import dataclass

from hybridflow.config.sections import Config
from hybridflow.curriculum.source import PromptSource, ShuffledEpochs
from hybridflow.curriculum.step_rule import EveryCompleteGroup, StepRule
from hybridflow.data.dataset import PromptDataset


@dataclass(frozen=True)
class Curriculum:
    """Source of prompts and step rule of a run."""

    source: PromptSource
    rule: StepRule


def build_curriculum(config: Config, train: PromptDataset) -> Curriculum:
    """Shuffled epochs of the training prompts, and steps that end with enough complete groups."""
    source = ShuffledEpochs(train.prompts, ("hybridflow.order", train.name, config.run.seed))
    return Curriculum(source, EveryCompleteGroup())
