"""Rules that join phases of a curriculum with the rest of a configuration, in the form of `conflicts`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from pydantic import ValidationError

from hybridflow.config.phases import OVERLAYS, name_keys, name_phase, phase_config

if TYPE_CHECKING:
    from hybridflow.config.curriculum_section import PhaseSection
    from hybridflow.config.sections import Config


def find_phase_conflicts(config: Config, find_others: Callable[[Config], Iterable[str]]) -> Iterator[str]:
    """Gives each rule that phases break; `find_others` are the rules that hold for the configuration of each phase.

    What is wrong with the run as a whole is not told again for each of its phases.
    """
    phases = config.curriculum.phases
    yield from _find_normaliser_conflicts(config)
    known = set(find_others(config)) if phases else set()
    of_run = {_without_numbers(rule) for rule in known}
    for number, phase in enumerate(phases):
        named = name_phase(phase, number)
        longest = config.data.max_prompt_tokens
        if phase.window is not None and phase.window[1] > longest:
            yield (
                f"curriculum.phases.{number}.window = {phase.window} of phase {phase.name!r} ends above "
                f"data.max_prompt_tokens ({longest}): its longest prompts are refused or left out. Remedy: raise "
                f"data.max_prompt_tokens to {phase.window[1]}, or end the window there"
            )
        try:
            own = [
                rule
                for rule in find_others(phase_config(config, number))
                if rule not in known and (_without_numbers(rule) not in of_run or _is_of_phase(rule, phase))
            ]
        except ValidationError as error:
            own = [problem["msg"].removeprefix("Value error, ") for problem in error.errors()]
        yield from (f"{named}: {name_keys(rule, config, number)}" for rule in own)
        known |= set(own)
        yield from _find_promotion_conflicts(config, number)


def _without_numbers(rule: str) -> str:
    return re.sub(r"\d+", "", rule)


def _is_of_phase(rule: str, phase: PhaseSection) -> bool:
    """Whether a rule names a key that the phase sets otherwise, beside its window."""
    return any(".".join(key) in rule for name, key in OVERLAYS.items() if getattr(phase, name) is not None)


def _find_normaliser_conflicts(config: Config) -> Iterator[str]:
    """Train workers learn the constant normaliser when they are opened, and keep it over phases."""
    phases, section = config.curriculum.phases, config.algorithm
    limits = {phase.name: phase.max_new_tokens or config.rollout.max_new_tokens for phase in phases}
    if section.aggregation == "constant" and section.normaliser_tokens is None and len(set(limits.values())) > 1:
        told = ", ".join(f"{name}: {limit}" for name, limit in limits.items())
        yield (
            "algorithm.aggregation = 'constant' with algorithm.normaliser_tokens empty divides by the longest "
            f"completion, and curriculum.phases differ in max_new_tokens ({told}). Remedy: set "
            f"algorithm.normaliser_tokens to one number for all phases, such as {max(limits.values())}"
        )


def _find_promotion_conflicts(config: Config, number: int) -> Iterator[str]:
    """A plateau that no evaluation could show, and a phase after the end of the run."""
    phases, total = config.curriculum.phases, config.train.num_steps
    phase, key = phases[number], f"curriculum.phases.{number}"
    fixed = [before.steps if before.promotion == "steps" else None for before in phases[:number]]
    begins = sum(steps or 1 for steps in fixed)
    if number and 0 < total <= begins:
        least = "" if all(fixed) else "at least "
        yield (
            f"{key} ({phase.name!r}) never begins: the phases before it take {least}{begins} steps, and "
            f"train.num_steps is {total}. Remedy: raise train.num_steps above {begins}, or shorten those phases"
        )
    if (told := tell_plateau(config, number, begins, phase.steps, is_known=all(fixed))) is not None:
        yield told


def tell_plateau(config: Config, number: int, begins: int, num_steps: int | None, *, is_known: bool) -> str | None:
    """Why no plateau can end phase `number`, with the remedy; None where one can, or none is to.

    Args:
        begins: Steps of the phases before it, at least.
        num_steps: Steps of the phase at most; None: to the end of the run.
        is_known: Whether it begins after exactly so many.
    """
    phase, total = config.curriculum.phases[number], config.train.num_steps
    every, prompts, needed = config.eval.every_steps, config.eval.num_prompts, phase.plateau_evaluations + 1
    never = f"curriculum.phases.{number}.promotion = 'plateau' of phase {phase.name!r} can never fire"
    if phase.promotion != "plateau":
        return None
    if not every or not prompts:
        return (
            f"{never}: eval.every_steps is {every} and eval.num_prompts is {prompts}, so nothing is evaluated within "
            f"the phase. Remedy: set both above 0, or promotion = 'steps'"
        )
    if not total:
        return None  # the warm-up alone
    length = max(0, min(num_steps or total, total - begins))
    found = (begins + length) // every - begins // every if is_known else -(-length // every)
    if found >= needed:
        return None
    return (
        f"{never}: within its {length} steps{f', after {begins},' if begins and is_known else ''} eval.every_steps = "
        f"{every} gives at most {found} evaluations, and plateau_evaluations = {phase.plateau_evaluations} needs "
        f"{needed}, the first to compare with. Remedy: evaluate more often, lower plateau_evaluations, or give the "
        f"phase more steps"
    )
