"""The configuration of a phase: that of the run, with what the phase sets laid over it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hybridflow.config.curriculum_section import PhaseSection
from hybridflow.config.layout_section import LayoutSection
from hybridflow.config.section import Section

if TYPE_CHECKING:
    from hybridflow.config.sections import Config

OVERLAYS = {
    "prompts_per_step": ("train", "prompts_per_step"),
    "mini_batch_prompts": ("train", "mini_batch_prompts"),
    "max_tokens_per_micro_batch": ("train", "max_tokens_per_micro_batch"),
    "num_completions": ("algorithm", "num_completions"),
    "max_new_tokens": ("rollout", "max_new_tokens"),
    "temperature": ("rollout", "temperature"),
    "top_p": ("rollout", "top_p"),
    "context_tokens": ("rollout", "context_tokens"),
    "layout": ("train", "layout"),
    "train_path": ("data", "train_path"),
}
"""Key of a phase -> section and key that it stands in the place of."""


def phase_config(config: Config, number: int) -> Config:
    """The configuration that steps of phase `number` (from 0) read; `config` itself where there are no phases.

    The longest prompt is that of the phase's window. Raises pydantic's ValidationError where a section refuses a value.
    """
    if not config.curriculum.phases:
        return config
    phase = config.curriculum.phases[number]
    changes: dict[str, dict[str, Any]] = {}
    for name, (section, key) in OVERLAYS.items():
        if (value := getattr(phase, name)) is not None:
            changes.setdefault(section, {})[key] = value
    if phase.window is not None:
        changes.setdefault("data", {})["max_prompt_tokens"] = min(phase.window[1], config.data.max_prompt_tokens)
    return config.model_copy(update={name: _laid_over(getattr(config, name), keys) for name, keys in changes.items()})


def _laid_over(section: Section, keys: dict[str, Any]) -> Section:
    """Validated again, as rules within a section may join two of its keys."""
    return type(section).model_validate({**dict(section), **keys})


def train_configs(config: Config) -> dict[str | None, Config]:
    """By path, None for generated rows, in the order of phases: the configuration with these training rows alone."""
    paths = [phase.train_path or config.data.train_path for phase in config.curriculum.phases]
    return {
        path: config.model_copy(update={"data": config.data.model_copy(update={"train_path": path})})
        for path in paths or [config.data.train_path]
    }


@dataclass(frozen=True)
class Opening:
    """Settings that workers are opened with; phases of which they differ need other workers."""

    layout: LayoutSection
    context_tokens: int
    yarn_factor: float | None

    @classmethod
    def of(cls, config: Config, number: int) -> Opening:
        at, phases = phase_config(config, number), config.curriculum.phases
        return cls(at.train.layout, at.rollout.context_tokens, phases[number].yarn_factor if phases else None)


def smallest_top_p(config: Config) -> float:
    """Engines that are opened for it serve every phase: below 1 they have to keep which tokens were left in."""
    return min([config.rollout.top_p, *(phase.top_p for phase in config.curriculum.phases if phase.top_p is not None)])


def name_keys(text: str, config: Config, number: int) -> str:
    """A message on the configuration of phase `number`, with the keys that the phase sets in the place of the run's."""
    phase, prefix = config.curriculum.phases[number], f"curriculum.phases.{number}"
    names = {".".join(key): f"{prefix}.{name}" for name, key in OVERLAYS.items() if getattr(phase, name) is not None}
    if phase.window is not None and phase.window[1] <= config.data.max_prompt_tokens:
        names["data.max_prompt_tokens"] = f"{prefix}.window.1"
    return re.sub(r"(?<![\w.])[a-z_]+\.[a-z_]+(?!\w)", lambda found: names.get(found[0], found[0]), text)


def name_phase(phase: PhaseSection, number: int) -> str:
    """As messages name it: its place in the file, and its name."""
    return f"curriculum.phases.{number} ({phase.name!r})"
