"""Difficulty of prompts, as measured: 1 / (mean reward + epsilon) of the latest group of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hybridflow.algorithms.advantages import SAME_REWARD, group_rewards
from hybridflow.types import Group

TOO_HARD = "too_hard"
TOO_EASY = "too_easy"


class Measured(NamedTuple):
    """The latest group of a prompt of which any verdict is known."""

    num_known: int
    """Completions with a known verdict."""
    total: float
    """Sum of their rewards, without penalties of length."""
    num_times: int
    """Groups of this prompt that were measured, this one included."""

    @property
    def mean(self) -> float:
        return self.total / self.num_known


def compute_difficulty(mean: float, epsilon: float) -> float:
    """1 / (mean reward + epsilon).

    Source: QwenLong-L1 (arXiv 2505.17667 Eq. 10), 1 / mean, which is infinite where every answer is wrong: `epsilon`,
    above 0, is ours (half a right answer of a group of G is 1 / (2 G)).
    """
    return 1 / (mean + epsilon)


class DifficultyTable:
    """Mean reward of each prompt that was ever measured, from its latest group.

    Deviation from the paper, which measures once, with the base model: the groups of training measure, as they come at
    no cost, and the latest one says how hard a prompt is for the present policy. An unknown verdict is in no mean, and
    a group without a known one measures nothing.
    """

    def __init__(self) -> None:
        self._measured: dict[str, Measured] = {}

    def observe(self, groups: Iterable[Group]) -> None:
        """Takes complete groups, filtered ones included."""
        for group in groups:
            known = [reward for reward in group_rewards(group) if reward is not None]
            if known:
                before = self._measured.get(group.prompt.prompt_id)
                num_times = 1 + (before.num_times if before else 0)
                self._measured[group.prompt.prompt_id] = Measured(len(known), math.fsum(known), num_times)

    def mean(self, prompt_id: str) -> float | None:
        """Mean reward; None where it was never measured."""
        found = self._measured.get(prompt_id)
        return None if found is None else found.mean

    def is_all_wrong(self, prompt_id: str) -> bool:
        """Whether no completion of the latest group earned anything."""
        found = self._measured.get(prompt_id)
        return found is not None and found.mean <= SAME_REWARD

    def rows(self, epsilon: float) -> list[dict[str, Any]]:
        """A table to read, the hardest first: prompt, completions, mean reward, difficulty, times measured."""
        hardest_first = sorted(self._measured.items(), key=lambda entry: (entry[1].mean, entry[0]))
        return [
            {
                "prompt_id": prompt_id,
                "num_completions": found.num_known,
                "mean_reward": found.mean,
                "difficulty": compute_difficulty(found.mean, epsilon),
                "num_times": found.num_times,
            }
            for prompt_id, found in hardest_first
        ]

    def state_dict(self) -> dict[str, Any]:
        """JSON values; `load_state_dict` makes the same table of them."""
        return {"prompts": {prompt_id: list(found) for prompt_id, found in self._measured.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError, which says what is wrong, for what `state_dict` did not give."""
        prompts = state.get("prompts")
        if not isinstance(prompts, dict) or len(state) != 1:
            raise ValueError(f"expected {{'prompts': a table by prompt id}}, got {str(state)[:80]}")
        self._measured = {prompt_id: _read(prompt_id, entry) for prompt_id, entry in prompts.items()}


def filter_by_difficulty(
    prompt_ids: Sequence[str], table: DifficultyTable, *, lowest: float = 0.0, highest: float = 1.0
) -> tuple[list[str], dict[str, list[str]]]:
    """(prompts whose mean reward is in [lowest, highest], the others by reason), by id, in the order given.

    A prompt that was never measured stays: nothing is known against it. Measure with the limits of the phase that is to
    come (QwenLong-L1.5, arXiv 2512.12967): what is out of reach within them teaches nothing.
    """
    kept: list[str] = []
    dropped: dict[str, list[str]] = {}
    for prompt_id in prompt_ids:
        mean = table.mean(prompt_id)
        if mean is not None and not lowest <= mean <= highest:
            dropped.setdefault(TOO_HARD if mean < lowest else TOO_EASY, []).append(prompt_id)
        else:
            kept.append(prompt_id)
    return kept, dropped


def _read(prompt_id: str, entry: Any) -> Measured:
    match entry:
        case [int(num_known), int() | float() as total, int(num_times)] if (
            num_known > 0 and num_times > 0 and math.isfinite(total)
        ):
            return Measured(num_known, float(total), num_times)
    raise ValueError(f"prompt {prompt_id!r}: expected [completions, sum of rewards, times measured], got {entry!r}")
