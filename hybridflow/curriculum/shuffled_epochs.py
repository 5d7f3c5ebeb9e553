"""Shuffled epochs: every prompt once, then every prompt once in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hybridflow.data.streams import draw_range
from hybridflow.types import Group, Prompt


class ShuffledEpochs:
    """Endless walk over prompts, in epochs that are each a seeded permutation.

    The order follows from `stream` (names and seeds of the walk) and the number of prompts, so the state is one number:
    how many were taken. A call of `next` may span two epochs.
    """

    name = "shuffled_epochs"

    def __init__(self, prompts: Sequence[Prompt], stream: tuple[str | int, ...]) -> None:
        self._prompts = prompts
        self._stream = stream
        self._num_taken = 0

    def next(self, num_prompts: int) -> list[Prompt]:
        chosen = draw_range(self._stream, len(self._prompts), self._num_taken, num_prompts)
        self._num_taken += num_prompts
        return [self._prompts[index] for index in chosen]

    def observe(self, groups: Sequence[Group]) -> None:
        """Whatever came of them, the order stays."""

    def state_dict(self) -> dict[str, Any]:
        return {"num_taken": self._num_taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        num_taken = state.get("num_taken")
        if type(num_taken) is not int or num_taken < 0 or len(state) != 1:
            raise ValueError(f"expected {{'num_taken': a number of prompts}}, got {str(state)[:80]}")
        self._num_taken = num_taken
