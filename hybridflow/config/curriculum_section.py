"""`[curriculum]`: phases of training by length, what each sets otherwise, and when the next one begins."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hybridflow.config.paths import InputPath
from hybridflow.config.section import Section

Window = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]


class PhaseSection(Section):
    """One stretch of RL steps; a key of its own that is empty is as the rest of the configuration has it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    """Name of the phase in the display, the summary and messages."""
    train_path: InputPath | None = None
    """Rows of this phase, Parquet or JSONL; empty: those of data.train_path or data.synth."""
    window: Window | None = None
    """[L, H]: prompts of more than L and at most H tokens, chat template included; empty: every prompt."""
    steps: int | None = Field(default=None, ge=1)
    """RL steps of the phase at most. Empty with `epochs` empty: to the plateau, or to train.num_steps in the last."""
    epochs: int | None = Field(default=None, ge=1)
    """In the place of `steps`: so many times the prompts of the phase, rounded up to whole steps."""
    promotion: Literal["steps", "plateau"] = "steps"
    """End of the phase: its `steps` or `epochs`, or before them a plateau of the accuracy on the test set."""
    plateau_evaluations: int = Field(default=2, ge=1)
    """Evaluations in a row, within the phase, whose accuracy is not above the best before them: a plateau."""
    plateau_margin: float = Field(default=0.0, ge=0, lt=1)
    """By so much an accuracy has to be above the best to count as better."""
    prompts_per_step: int | None = Field(default=None, ge=1)
    """In the place of train.prompts_per_step."""
    mini_batch_prompts: int | None = Field(default=None, ge=1)
    """In the place of train.mini_batch_prompts."""
    num_completions: int | None = Field(default=None, ge=2)
    """In the place of algorithm.num_completions."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """In the place of rollout.max_new_tokens, in training; evaluation has the same limit in all phases."""
    temperature: float | None = Field(default=None, ge=1e-3)
    """In the place of rollout.temperature."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """In the place of rollout.top_p."""
    max_tokens_per_micro_batch: int | None = Field(default=None, ge=1)
    """In the place of train.max_tokens_per_micro_batch."""


class CurriculumSection(Section):
    """Phases of RL. Without one, all steps train on all rows alike."""

    phases: list[PhaseSection] = Field(default_factory=list)
    """In order; windows of phases neither overlap nor leave gaps."""

    @model_validator(mode="after")
    def _check(self) -> CurriculumSection:
        names = [phase.name for phase in self.phases]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two phases are named {twice[0]!r}. Remedy: give each phase a name of its own")
        _check_windows(self.phases)
        for number, phase in enumerate(self.phases):
            _check_end(phase, f"curriculum.phases.{number}", is_last=number == len(self.phases) - 1)
        return self


def _check_windows(phases: list[PhaseSection]) -> None:
    """Each window is one, and begins where the one before it ends."""
    without = [phase.name for phase in phases if phase.window is None]
    if without and len(without) < len(phases):
        raise ValueError(
            f"phase {without[0]!r} has no window, others have one: its prompts would be those of theirs again. Remedy: "
            "give every phase a window, or none"
        )
    before: PhaseSection | None = None
    for number, phase in enumerate(phases):
        if phase.window is None:
            return
        key, (low, high) = f"curriculum.phases.{number}.window", phase.window
        if low >= high:
            raise ValueError(f"{key} = [{low}, {high}] of phase {phase.name!r} is empty. Remedy: [shorter, longer]")
        if before is not None and before.window is not None and low != before.window[1]:
            ends = before.window[1]
            what = "overlap" if low < ends else f"leave out prompts of {ends + 1} to {low} tokens"
            raise ValueError(
                f"{key} = [{low}, {high}] of phase {phase.name!r} and curriculum.phases.{number - 1}.window = "
                f"{before.window} of phase {before.name!r} {what}. Remedy: {key} = [{ends}, {max(high, ends + 1)}]"
            )
        before = phase


def _check_end(phase: PhaseSection, key: str, *, is_last: bool) -> None:
    """Something ends the phase, and says so once."""
    if phase.steps is not None and phase.epochs is not None:
        raise ValueError(
            f"{key}.steps ({phase.steps}) and {key}.epochs ({phase.epochs}) of phase {phase.name!r} both say how long "
            "it is. Remedy: leave one out"
        )
    if phase.steps is None and phase.epochs is None and phase.promotion == "steps" and not is_last:
        raise ValueError(
            f"{key}.promotion = 'steps' of phase {phase.name!r} can never fire: neither {key}.steps nor {key}.epochs "
            f"is set, so no later phase would begin. Remedy: set one of them, or promotion = 'plateau'"
        )
