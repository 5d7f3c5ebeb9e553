"""The choice of source and step rule of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hybridflow.algorithms.algorithm import build_algorithm
from hybridflow.algorithms.spec import algorithm_spec
from hybridflow.config.sections import Config
from hybridflow.curriculum.own_source import OFFERED, build_own_source
from hybridflow.curriculum.phases import PhasedSource
from hybridflow.curriculum.retrospection import Retrospection
from hybridflow.curriculum.source import PromptSource, ShuffledEpochs
from hybridflow.curriculum.step_rule import EveryCompleteGroup, StepRule, TeachingGroups
from hybridflow.curriculum.task_balance import TaskBalance
from hybridflow.curriculum.windows import build_phases
from hybridflow.data.dataset import PromptDataset
from hybridflow.errors import ConfigError
from hybridflow.types import Prompt


@dataclass(frozen=True)
class Curriculum:
    """Source of prompts and step rule of a run."""

    source: PromptSource
    rule: StepRule
    phases: PhasedSource | None = None
    """The source, where the run has phases."""
    rows: str = ""
    """Digests of the files that it trains on."""


def build_curriculum(config: Config, trains: Mapping[str | None, PromptDataset]) -> Curriculum:
    """Phases, one walk over all training prompts, or a source of the user's own; and the step rule.

    `trains`: by path, None for generated rows, what the run trains on. Raises ConfigError for a phase without rows, and
    for shares of tasks that do not fit the rows.
    """
    rule, rows = build_step_rule(config), " ".join(one.digest() for one in trains.values())
    first = next(iter(trains.values()))
    stream = ("hybridflow.order", first.name, config.run.seed)
    if config.curriculum.source is not None:
        values = (first.prompts, config.run.seed, config.train.prompts_per_step)
        given: dict[str, Any] = dict(zip(OFFERED, values, strict=True))
        own = build_own_source(config.curriculum.source, config.curriculum.module_folders, given)
        return Curriculum(own, rule, rows=rows)
    if not config.curriculum.phases:
        return Curriculum(open_walk(config, first.prompts, stream), rule, rows=rows)
    phases = build_phases(config, {path: one.prompts for path, one in trains.items()})
    for phase in phases:
        open_walk(config, phase.prompts, stream, f" in phase {phase.name!r}")
    source = PhasedSource(phases, stream, build_retrospection(config), partial(open_walk, config))
    return Curriculum(source, rule, source, rows)


def open_walk(
    config: Config, prompts: Sequence[Prompt], stream: tuple[str | int, ...], where: str = ""
) -> PromptSource:
    """The order of prompts that `curriculum.task_balance` says. Raises ConfigError where shares do not fit them."""
    section = config.curriculum
    if section.task_balance == "off":
        return ShuffledEpochs(prompts, stream)
    try:
        return TaskBalance(prompts, stream, section.task_shares if section.task_balance == "shares" else None)
    except ValueError as error:
        raise ConfigError(f"curriculum.task_shares = {section.task_shares}{where}: {error}") from error


def build_retrospection(config: Config) -> Retrospection:
    """The choice among prompts of earlier phases."""
    section = config.curriculum.retrospection
    return Retrospection(section.mode, section.epsilon or 1 / (2 * config.algorithm.num_completions))


def build_step_rule(config: Config) -> StepRule:
    """Steps end with enough complete groups or, with dynamic sampling, with enough that teach."""
    section = config.rollout
    if not section.dynamic_sampling:
        return EveryCompleteGroup()
    algorithm = build_algorithm(algorithm_spec(config))
    return TeachingGroups(algorithm.reason_to_drop, section.count_under_way, section.max_generation_batches)
