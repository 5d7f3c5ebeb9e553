"""Phases of a configuration with their prompts: which rows fall into the window of each, and how long it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from hybridflow.config.curriculum_section import PhaseSection
from hybridflow.config.phase_rules import tell_plateau
from hybridflow.config.phases import name_phase, phase_config
from hybridflow.config.sections import Config
from hybridflow.curriculum.phases import Phase, Plateau
from hybridflow.errors import ConfigError
from hybridflow.types import Prompt


def build_phases(config: Config, prompts: Mapping[str | None, Sequence[Prompt]]) -> list[Phase]:
    """The phases of `curriculum.phases`, in order.

    Args:
        prompts: By path, None for generated rows: all prompts of each file that a phase reads.

    Raises:
        ConfigError: no prompt falls into a window, with the number in each; or a phase begins after the run's end.
    """
    sections = config.curriculum.phases
    inside = [
        [prompt for prompt in prompts[path_of(config, one)] if is_in(one, len(prompt.token_ids))] for one in sections
    ]
    for number, (section, found) in enumerate(zip(sections, inside, strict=True)):
        if not found:
            raise ConfigError(_tell_empty(config, number, prompts[path_of(config, section)], list(map(len, inside))))
    phases = [_build_phase(config, number, found) for number, found in enumerate(inside)]
    _refuse_late(config, phases)
    return phases


def path_of(config: Config, phase: PhaseSection) -> str | None:
    """The file that a phase reads; None where its rows are generated."""
    return phase.train_path or config.data.train_path


def is_in(phase: PhaseSection, num_tokens: int) -> bool:
    """Whether a prompt of this length, chat template included, is one of the phase."""
    return phase.window is None or phase.window[0] < num_tokens <= phase.window[1]


def count_outside(config: Config, prompts: Mapping[str | None, Sequence[Prompt]]) -> int:
    """Prompts that no phase which reads their file has in its window."""
    return count_rows(config, {path: [len(one.token_ids) for one in found] for path, found in prompts.items()})[1]


def count_rows(config: Config, lengths: Mapping[str | None, Sequence[int]]) -> tuple[list[int], int]:
    """Rows in the window of each phase, and in that of none which reads their file; `lengths`: of prompts, by path."""
    sections = config.curriculum.phases
    inside = [sum(is_in(one, length) for length in lengths[path_of(config, one)]) for one in sections]
    outside = sum(
        not any(is_in(one, length) for one in sections if path_of(config, one) == path)
        for path, found in lengths.items()
        for length in found
    )
    return inside, outside


def describe_counts(sections: Sequence[PhaseSection], counts: Sequence[int]) -> str:
    """Rows per window, for messages: "short (0, 100]: 12, long (100, 200]: 3"."""
    return ", ".join(
        f"{one.name}{f' ({one.window[0]}, {one.window[1]}]' if one.window else ''}: {count}"
        for one, count in zip(sections, counts, strict=True)
    )


def _tell_empty(config: Config, number: int, prompts: Sequence[Prompt], counts: list[int]) -> str:
    section = config.curriculum.phases[number]
    lengths = [len(prompt.token_ids) for prompt in prompts]
    source = path_of(config, section) or "data.synth"
    return (
        f"{name_phase(section, number)}: none of the {len(lengths)} rows of {source} has a prompt, counted with the "
        f"model's chat template, in its window {section.window}: they have {min(lengths)} to {max(lengths)} tokens. "
        f"Rows per window: {describe_counts(config.curriculum.phases, counts)}. Remedy: move the windows, "
        f"leave the phase out, or name rows of that length in curriculum.phases.{number}.train_path"
    )


def _build_phase(config: Config, number: int, prompts: Sequence[Prompt]) -> Phase:
    section = config.curriculum.phases[number]
    per_step, share = phase_config(config, number).train.prompts_per_step, section.retrospective_share
    is_plateau = section.promotion == "plateau"
    return Phase(
        section.name,
        prompts,
        section.steps,
        Plateau(section.plateau_evaluations, section.plateau_margin) if is_plateau else None,
        share,
        max(1, math.ceil(per_step * share)),
        section.epochs,
        per_step * (1 - Fraction(str(share))),
        None if section.difficulty_filter is None else (section.difficulty_filter[0], section.difficulty_filter[1]),
    )


def _refuse_late(config: Config, phases: Sequence[Phase]) -> None:
    """Epochs are steps now: a phase that they push behind the end of the run would never begin, nor would a plateau
    show in a phase that they make too short."""
    begins, total, is_known = 0, config.train.num_steps, True
    for number, (phase, section) in enumerate(zip(phases, config.curriculum.phases, strict=True)):
        if number and 0 < total <= begins:
            raise ConfigError(
                f"{name_phase(section, number)} never begins: the phases before it take {begins} steps, and "
                f"train.num_steps is {total}. Remedy: raise train.num_steps above {begins}, or lower "
                f"curriculum.phases.{number - 1}.epochs"
            )
        num_steps = phase.count_steps(len(phase.prompts))
        if told := tell_plateau(config, number, begins, num_steps, is_known=is_known):
            raise ConfigError(told)
        is_plateau = section.promotion == "plateau"
        is_known = is_known and not is_plateau
        begins += 1 if is_plateau else num_steps or 1
