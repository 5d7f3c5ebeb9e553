"""Phases as a source of prompts: a machine whose state is in every checkpoint.

    phase 0: prompts of its window --promotion--> phase 1: prompts of its window --promotion--> ... over

A step takes its prompts from the present phase, and a share from earlier ones where the phase says so. After each step
the source counts it and measures how hard its prompts were (`observe`), an evaluation may be told
(`observe_evaluation`), and between two steps `advance` moves on where the promotion rule has fired. All that decides
what comes next is in the state, so a run that was stopped in any phase goes on in it with the same prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import msgspec

from hybridflow.curriculum.difficulty import DifficultyTable, filter_by_difficulty
from hybridflow.curriculum.retrospection import Retrospection
from hybridflow.curriculum.retrospective_source import RetrospectiveSource
from hybridflow.curriculum.source import PromptSource, ShuffledEpochs
from hybridflow.types import Group, Prompt

Ending = Literal["steps", "plateau"]


@dataclass(frozen=True)
class Plateau:
    """Ends a phase once so many evaluations in a row were not better, by more than `margin`, than the best before."""

    num_evaluations: int
    margin: float


@dataclass(frozen=True)
class Phase:
    """Prompts of a phase, and what ends it."""

    name: str
    prompts: Sequence[Prompt]
    num_steps: int | None
    """Steps at most; None: as `num_epochs` says."""
    plateau: Plateau | None = None
    share: float = 0.0
    """Share of prompts of earlier phases."""
    per_draw: int = 1
    """Prompts of earlier phases that a step has places for."""
    num_epochs: int | None = None
    """Times that its prompts are gone through, rounded up to whole steps; None: until the plateau, or without end."""
    own_per_step: Fraction = Fraction(1)
    """Prompts of its own that a step takes, on the average."""
    bounds: tuple[float, float] | None = None
    """Mean reward of a prompt that is trained on, measured before the first step; None: all are."""

    def count_steps(self, num_prompts: int) -> int | None:
        """Steps at most, of so many prompts that are trained on; None: until the plateau, or without end."""
        if self.num_epochs is None:
            return self.num_steps
        return math.ceil(self.num_epochs * num_prompts / self.own_per_step)


class PhaseState(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Progress through the phases, as JSON values."""

    steps_done: list[int]
    """Steps of each phase that has begun; the last one is the present phase."""
    endings: list[Ending] = []
    """Ending of each phase before it."""
    num_own: int = 0
    """Prompts of its own that the present phase has handed out."""
    kept: list[str] | None = None
    """Prompts of the present phase that the filter by difficulty left in, by id; None: not measured."""
    walk: dict[str, Any] = {}
    """State of the walk over them."""
    difficulty: dict[str, Any] = {}
    """Table of the difficulties of prompts, over all phases."""
    best: float | None = None
    """Best accuracy of the evaluations within the present phase."""
    num_flat: int = 0
    """Evaluations since the best."""


class PhasedSource:
    """Hands out the prompts of one phase after the other, each in an order of its own."""

    name = "phases"

    def __init__(
        self,
        phases: Sequence[Phase],
        stream: tuple[str | int, ...],
        rule: Retrospection,
        open_walk: Callable[[Sequence[Prompt], tuple[str | int, ...]], PromptSource] = ShuffledEpochs,
    ) -> None:
        """`stream` names the order of the run; each phase has one of its own in it.

        `rule` chooses among the prompts of earlier phases, `open_walk` gives the order of those of one phase.
        """
        self.phases = phases
        self.difficulty = DifficultyTable()
        self.rule = rule
        self._open_own = open_walk
        self._stream = stream
        self._enter(PhaseState(steps_done=[0]))

    @property
    def number(self) -> int:
        """The present phase, from 0."""
        return len(self._state.steps_done) - 1

    @property
    def phase(self) -> Phase:
        """The present phase."""
        return self.phases[self.number]

    @property
    def num_steps(self) -> int | None:
        """Steps of the present phase at most."""
        return self.phase.count_steps(len(self._own_ids))

    @property
    def num_steps_of_all(self) -> int | None:
        """Steps of all phases at most, those that are done as they were; None where one goes on without a number."""
        later = [phase.count_steps(len(phase.prompts)) for phase in self.phases[self.number + 1 :]]
        counts = [*self._state.steps_done[:-1], self.num_steps, *later]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def to_measure(self) -> Sequence[Prompt]:
        """Prompts of the present phase whose difficulty has to be known before its first step; empty where it is."""
        return self.phase.prompts if self.phase.bounds is not None and self._state.kept is None else []

    def filter_prompts(self, groups: Sequence[Group]) -> dict[str, list[str]]:
        """Takes the measured groups of `to_measure`; returns the prompts that are left out, by reason.

        Where none would be left, all stay in: the reasons then name every prompt.
        """
        assert self.phase.bounds is not None
        self.difficulty.observe(groups)
        lowest, highest = self.phase.bounds
        ids = [prompt.prompt_id for prompt in self.phase.prompts]
        kept, dropped = filter_by_difficulty(ids, self.difficulty, lowest=lowest, highest=highest)
        self._state.kept = kept or ids
        self._enter(self._state)
        return dropped

    @property
    def steps_done(self) -> list[int]:
        """Steps of each phase that has begun."""
        return list(self._state.steps_done)

    @property
    def endings(self) -> list[Ending]:
        """Ending of each phase that is over."""
        last = self._find_ending() if self.is_over else None
        return [*self._state.endings, *([last] if last else [])]

    @property
    def is_over(self) -> bool:
        """Whether the last phase has ended: the run has nothing more to train on."""
        return self.number == len(self.phases) - 1 and self._find_ending() is not None

    def next(self, num_prompts: int) -> list[Prompt]:
        return self._count_own(self._walk.next(num_prompts))

    def replace(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        return self._count_own(self._walk.replace(prompts))

    def observe(self, groups: Sequence[Group]) -> None:
        """Counts the step, and measures how hard its prompts are."""
        self._state.steps_done[-1] += 1
        self.difficulty.observe(groups)
        self._walk.observe(groups)

    def observe_evaluation(self, accuracy: float | None) -> None:
        """Takes the accuracy on the test set after a step; None, where no verdict is known, says nothing."""
        if accuracy is None or self.phase.plateau is None:
            return
        state = self._state
        if state.best is None or accuracy > state.best + self.phase.plateau.margin:
            state.best, state.num_flat = accuracy, 0
        else:
            state.num_flat += 1

    def advance(self) -> bool:
        """Enters the next phase where the present one has ended; called between two steps. False in the last phase."""
        ending = self._find_ending()
        if ending is None or self.is_over:
            return False
        before = self._state
        self._enter(PhaseState(steps_done=[*before.steps_done, 0], endings=[*before.endings, ending]))
        return True

    def take_metrics(self) -> dict[str, float]:
        """Place of a step in the curriculum, once it is done."""
        return {
            "curriculum/phase": float(self.number + 1),
            "curriculum/phase_step": float(self._state.steps_done[-1]),
            "curriculum/epochs": self._state.num_own / len(self._own_ids),
            **(self._walk.metrics() if isinstance(self._walk, RetrospectiveSource) else {}),
        }

    def state_dict(self) -> dict[str, Any]:
        return msgspec.to_builtins(self._state) | {
            "walk": self._walk.state_dict(),
            "difficulty": self.difficulty.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        try:
            found = msgspec.convert(state, PhaseState)
        except msgspec.ValidationError as error:
            raise ValueError(f"expected the state of phases: {error}") from error
        counts = [*found.steps_done, found.num_own, found.num_flat]
        if not 0 < len(found.steps_done) <= len(self.phases) or min(counts) < 0:
            raise ValueError(f"expected progress through {len(self.phases)} phases, got {str(state)[:80]}")
        if len(found.endings) != len(found.steps_done) - 1:
            raise ValueError(f"expected an ending of each phase before the present one, got {found.endings}")
        self.difficulty.load_state_dict(found.difficulty)
        self._enter(found)
        self._walk.load_state_dict(found.walk)

    def _enter(self, state: PhaseState) -> None:
        """Takes a state, and opens the walk of its phase from the beginning."""
        self._state = state
        phase, stream = self.phase, (*self._stream, self.phase.name)
        kept = None if state.kept is None else set(state.kept)
        own = [prompt for prompt in phase.prompts if kept is None or prompt.prompt_id in kept]
        if not own:
            raise ValueError(f"kept names no prompt of phase {phase.name!r}: {str(state.kept)[:80]}")
        self._own_ids = {prompt.prompt_id for prompt in own}
        self._walk = self._open_own(own, stream)
        if phase.share:
            earlier = [prompt for before in self.phases[: self.number] for prompt in before.prompts]
            self._walk = RetrospectiveSource(
                self._walk,
                earlier,
                self.difficulty,
                self.rule,
                share=phase.share,
                per_draw=phase.per_draw,
                stream=(*stream, "retrospective"),
            )

    def _count_own(self, chosen: list[Prompt]) -> list[Prompt]:
        self._state.num_own += sum(prompt.prompt_id in self._own_ids for prompt in chosen)
        return chosen

    def _find_ending(self) -> Ending | None:
        """Ending of the present phase; None while it goes on."""
        phase, state, num_steps = self.phase, self._state, self.num_steps
        if phase.plateau is not None and state.num_flat >= phase.plateau.num_evaluations:
            return "plateau"
        return "steps" if num_steps is not None and state.steps_done[-1] >= num_steps else None
