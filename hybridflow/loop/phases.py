"""Phases of a run: the configuration of the present one, and when the next begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridflow.config.phases import Opening, phase_config
from hybridflow.config.sections import Config
from hybridflow.curriculum.phases import PhasedSource
from hybridflow.recording.accuracy import TEST, EvalResult
from hybridflow.recording.csv_table import write_csv
from hybridflow.types import Collected, Prompt

RL = "RL"
"""The stage after the warm-up, as the display names it."""


class RunPhases:
    """Place of a run in its curriculum. Without phases, the same configuration from the first step to the last.

    Args:
        config: That of the run, as its file has it.
        source: Source of the run's prompts, where it has phases.
        model_of: Gives the folder of the model with YaRN of this factor.
    """

    def __init__(self, config: Config, source: PhasedSource | None, model_of: Callable[[float], Path]) -> None:
        self._config = config
        self._source = source
        self._model_of = model_of

    @property
    def config(self) -> Config:
        """Configuration that the steps of the present phase read."""
        if self._source is None:
            return self._config
        config, factor = phase_config(self._config, self._source.number), self.opening.yarn_factor
        if factor is None:
            return config
        return config.model_copy(
            update={"model": config.model.model_copy(update={"path": str(self._model_of(factor))})}
        )

    @property
    def opening(self) -> Opening:
        """Settings that the workers of the present phase are opened with."""
        return Opening.of(self._config, 0 if self._source is None else self._source.number)

    @property
    def stage(self) -> str:
        """Stage of the display: "RL", or "RL, phase 2 of 3: long"."""
        if self._source is None:
            return RL
        return f"{RL}, phase {self._source.number + 1} of {len(self._source.phases)}: {self._source.phase.name}"

    @property
    def num_steps(self) -> int:
        """Steps of the run at most: train.num_steps, or fewer where its phases end before."""
        of_phases = None if self._source is None else self._source.num_steps_of_all
        return min(self._config.train.num_steps, of_phases or self._config.train.num_steps)

    @property
    def is_over(self) -> bool:
        """Whether the last phase has ended."""
        return self._source is not None and self._source.is_over

    def observe_evaluation(self, results: Mapping[str, EvalResult]) -> None:
        """Shows the accuracy on the test set to the promotion rule."""
        if self._source is not None and TEST in results:
            self._source.observe_evaluation(results[TEST].accuracy)

    def advance(self) -> bool:
        """Enters the next phase where the promotion rule has fired; whether it has."""
        return self._source is not None and self._source.advance()

    @property
    def to_measure(self) -> Sequence[Prompt]:
        """Prompts whose difficulty the present phase has to know before its first step."""
        return [] if self._source is None else self._source.to_measure

    def filter_prompts(self, measured: Collected) -> str:
        """Leaves out the prompts of the phase that are too easy or too hard; says how many, for the user."""
        assert self._source is not None
        dropped = self._source.filter_prompts(measured.groups)
        total = len(self._source.phase.prompts)
        told = ", ".join(f"{len(ids)} are {reason.replace('_', ' ')}" for reason, ids in sorted(dropped.items()))
        told = f"difficulty of {total} prompts of phase {self._source.phase.name!r} measured: {told or 'all stay in'}"
        return f"{told}: so that something is left, all stay in" if sum(map(len, dropped.values())) == total else told

    def take_metrics(self) -> dict[str, float]:
        return {} if self._source is None else self._source.take_metrics()

    def save_difficulty(self, path: Path) -> None:
        """Writes how hard each prompt was, the hardest first, where the run has phases."""
        if self._source is not None:
            write_csv(self._source.difficulty.rows(self._source.rule.epsilon), path)

    def summary(self) -> dict[str, Any] | None:
        """For summary.json: each phase with its rows, its steps and what ended it; None without phases."""
        if self._source is None:
            return None
        done, endings = self._source.steps_done, self._source.endings
        return {
            "phase": self._source.phase.name,
            "is_over": self._source.is_over,
            "phases": [
                {
                    "name": phase.name,
                    "rows": len(phase.prompts),
                    "steps": done[number] if number < len(done) else 0,
                    "steps_at_most": phase.count_steps(len(phase.prompts)),
                    "ended_by": endings[number] if number < len(endings) else None,
                }
                for number, phase in enumerate(self._source.phases)
            ],
        }
