"""The choice of source and step rule of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hybridflow.config.sections import Config
from hybridflow.curriculum.phases import PhasedSource
from hybridflow.curriculum.source import PromptSource, ShuffledEpochs
from hybridflow.curriculum.step_rule import EveryCompleteGroup, StepRule
from hybridflow.curriculum.windows import build_phases
from hybridflow.data.dataset import PromptDataset


@dataclass(frozen=True)
class Curriculum:
    """Source of prompts and step rule of a run."""

    source: PromptSource
    rule: StepRule
    phases: PhasedSource | None = None
    """The source, where the run has phases."""


def build_curriculum(config: Config, trains: Mapping[str | None, PromptDataset]) -> Curriculum:
    """Phases, or shuffled epochs of all training prompts; and steps that end with enough complete groups.

    `trains`: by path, None for generated rows, what the run trains on. Raises ConfigError for a phase without rows.
    """
    rule = EveryCompleteGroup()
    first = next(iter(trains.values()))
    stream = ("hybridflow.order", first.name, config.run.seed)
    if not config.curriculum.phases:
        return Curriculum(ShuffledEpochs(first.prompts, stream), rule)
    phases = build_phases(config, {path: one.prompts for path, one in trains.items()})
    source = PhasedSource(phases, stream)
    return Curriculum(source, rule, source)
