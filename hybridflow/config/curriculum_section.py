"""`[curriculum]`: phases of training by length, what each sets otherwise, and when the next one begins."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from hybridflow.config.function_names import one_of
from hybridflow.config.layout_section import LayoutSection
from hybridflow.config.paths import InputPath
from hybridflow.config.section import Section

Bounds = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)]
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
    """In the place of `steps`: as many steps as so many times the prompts of the phase fill, rounded up. With dynamic
    sampling a step begins more of them than it trains on, and goes over them more often (`curriculum/epochs`)."""
    promotion: Literal["steps", "plateau"] = "steps"
    """End of the phase: its `steps` or `epochs`, or before them a plateau of the accuracy on the test set."""
    plateau_evaluations: int = Field(default=2, ge=1)
    """Evaluations in a row, within the phase, whose accuracy is not above the best before them: a plateau."""
    plateau_margin: float = Field(default=0.0, ge=0, lt=1)
    """By so much an accuracy has to be above the best to count as better."""
    retrospective_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of prompts of earlier phases, which come back, in a step; chosen as `curriculum.retrospection` says."""
    difficulty_filter: Bounds | None = None
    """[lowest, highest] mean reward of a prompt to train on: before its first step the phase measures all its prompts,
    with its own limits and num_completions, and leaves out those that are outside. Empty: none is measured."""
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
    layout: LayoutSection | None = None
    """In the place of train.layout, as a whole. Where it differs from that of the phase before, a checkpoint is saved,
    all workers are ended, and others are opened from it."""
    yarn_factor: float | None = Field(default=None, gt=1)
    """YaRN for trainer and engines alike: the model's native window is stretched by this factor. Workers are opened
    again where it changes; empty: as the model's config.json has it."""
    context_tokens: int | None = Field(default=None, ge=2)
    """In the place of rollout.context_tokens; workers are opened again where it changes."""


class RetrospectionSection(Section):
    """Choice among the prompts of earlier phases (arXiv 2505.17667, 3.2)."""

    mode: Literal["zero_accuracy_only", "weighted"] = "zero_accuracy_only"
    """Prompts whose last group was all wrong, as the paper did; or all, weighed by 1 / (mean reward + epsilon)."""
    epsilon: float | None = Field(default=None, gt=0)
    """Epsilon of this weight; empty: half a right answer of a group, 1 / (2 algorithm.num_completions)."""
    max_share: float = Field(default=0.5, gt=0, lt=1)
    """Largest `retrospective_share` of a phase: an all-wrong prompt gives no gradient, and counts against it."""


class CurriculumSection(Section):
    """Phases of RL, and how a batch is mixed. Without either, all steps train on all rows alike."""

    phases: list[PhaseSection] = Field(default_factory=list)
    """In order; windows of phases neither overlap nor leave gaps."""
    retrospection: RetrospectionSection = RetrospectionSection()
    task_balance: Literal["off", "equal", "shares"] = "off"
    """Each batch holds every task (data_source of its rows) within one row of its share: all alike, or `task_shares`;
    "off": as rows come."""
    task_shares: dict[str, float] = Field(default_factory=dict)
    """Share of each task by its data_source, in any unit, where task_balance is "shares"."""
    source: Annotated[str, AfterValidator(one_of())] | None = None
    """Function of your own, "module:function", that makes the source of prompts; in the place of all keys above."""
    module_folders: list[str] = Field(default_factory=list)
    """Folders in which its module is looked for first; those of the configuration and the working folder follow."""

    @property
    def names_module(self) -> bool:
        """Whether the source is named as "module:function"."""
        return self.source is not None

    @model_validator(mode="after")
    def _check(self) -> CurriculumSection:
        names = [phase.name for phase in self.phases]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two phases are named {twice[0]!r}. Remedy: give each phase a name of its own")
        others = {
            f"{len(self.phases)} curriculum.phases": bool(self.phases),
            "curriculum.task_balance": self.task_balance != "off",
            "curriculum.retrospection": self.retrospection != RetrospectionSection(),
        }
        if self.source is not None and any(others.values()):
            named = next(name for name, is_set in others.items() if is_set)
            raise ValueError(
                f"curriculum.source ({self.source!r}) with {named}: a source of your own hands out all prompts, in an "
                "order of its own. Remedy: leave one of them out"
            )
        if bool(self.task_shares) != (self.task_balance == "shares"):
            raise ValueError(
                f"curriculum.task_shares ({self.task_shares}) with curriculum.task_balance = {self.task_balance!r}: "
                'shares are those of "shares", which needs them. Remedy: set both, or neither'
            )
        _check_windows(self.phases)
        _check_shares(self)
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
            remedy = f"{key} = [{ends}, {high}]"
            if high <= ends:
                what = what if before.window[0] < high else "go from longer prompts to shorter ones"
                remedy = "order phases by length, each window beginning where the one before it ends"
            raise ValueError(
                f"{key} = [{low}, {high}] of phase {phase.name!r} and curriculum.phases.{number - 1}.window = "
                f"{before.window} of phase {before.name!r} {what}. Remedy: {remedy}"
            )
        before = phase


def _check_shares(section: CurriculumSection) -> None:
    """Something is there to come back, and it is not too much."""
    for number, phase in enumerate(section.phases):
        if phase.difficulty_filter is not None and phase.difficulty_filter[0] > phase.difficulty_filter[1]:
            raise ValueError(
                f"curriculum.phases.{number}.difficulty_filter = {phase.difficulty_filter} of phase {phase.name!r} "
                "leaves no prompt in. Remedy: [lowest, highest] mean reward"
            )
        key, share = f"curriculum.phases.{number}.retrospective_share", phase.retrospective_share
        if share and not number:
            raise ValueError(
                f"{key} = {share:g} of the first phase {phase.name!r}: no phase is before it. Remedy: leave it out"
            )
        if share > (most := section.retrospection.max_share):
            raise ValueError(
                f"{key} = {share:g} of phase {phase.name!r} is above curriculum.retrospection.max_share ({most:g}): "
                f"prompts that are all wrong again teach nothing. Remedy: lower it, or raise the cap"
            )


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
    for name in ("plateau_evaluations", "plateau_margin"):
        value = getattr(phase, name)
        if phase.promotion != "plateau" and value != PhaseSection.model_fields[name].default:
            raise ValueError(
                f"{key}.{name} ({value:g}) of phase {phase.name!r} with {key}.promotion = {phase.promotion!r}: no "
                f"plateau ends the phase. Remedy: set {key}.promotion = 'plateau', or leave {name} out"
            )
