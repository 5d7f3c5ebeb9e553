"""Retrospective sampling: prompts of earlier phases that come back, the harder the likelier, at a capped share.

Source: QwenLong-L1 (arXiv 2505.17667 section 3.2, Eq. 10): importance sampling with a weight proportional to the
difficulty. The paper gives no scheme, and its runs kept the prompts "with an average accuracy of zero"; both are modes
here. Ours are epsilon (see `difficulty`), the cap, and sampling without replacement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from hybridflow.curriculum.difficulty import DifficultyTable, compute_difficulty
from hybridflow.data.streams import derive_stream


@dataclass(frozen=True)
class Retrospection:
    """Chooses prompts of earlier phases by their difficulty; what was never measured is not among them."""

    mode: Literal["zero_accuracy_only", "weighted"]
    """The paper's practice, all-wrong prompts with equal weights; or its formula, all with their difficulty."""
    epsilon: float
    """Above 0; see `compute_difficulty`."""

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise ValueError(f"epsilon is {self.epsilon}: the weight of an all-wrong prompt would be infinite")

    def weigh(self, candidates: Sequence[str], table: DifficultyTable) -> dict[str, float]:
        """Weight of each candidate that can be drawn, by the id of its prompt."""
        weights: dict[str, float] = {}
        for prompt_id in candidates:
            mean = table.mean(prompt_id)
            if mean is not None and (self.mode == "weighted" or table.is_all_wrong(prompt_id)):
                weights[prompt_id] = compute_difficulty(mean, self.epsilon) if self.mode == "weighted" else 1.0
        return weights

    def draw(
        self, stream: tuple[str | int, ...], number: int, candidates: Sequence[str], table: DifficultyTable
    ) -> list[str]:
        """Ids of `number` different prompts, or of all that can be drawn; the same for the same stream.

        Without replacement within one draw. The next one may take a prompt again: over a whole walk without
        replacement every prompt would come equally often, whatever its weight.
        """
        weights = self.weigh(candidates, table)
        places = draw_included(derive_stream(*stream), compute_inclusion(list(weights.values()), number))
        drawable = list(weights)
        return [drawable[place] for place in places]


def compute_inclusion(weights: Sequence[float], number: int) -> list[float]:
    """Probability of each place to be among `number` different ones, or all: proportional to its weight, at most 1.

    A weight above its share of the draws is taken for certain, and the rest of the draws is shared among the others.
    """
    certain: set[int] = set()
    while len(certain) < min(number, len(weights)):
        scale = (number - len(certain)) / math.fsum(w for at, w in enumerate(weights) if at not in certain)
        more = {at for at, weight in enumerate(weights) if at not in certain and weight * scale >= 1}
        if not more:
            return [1.0 if at in certain else weight * scale for at, weight in enumerate(weights)]
        certain |= more
    return [1.0 if at in certain else 0.0 for at in range(len(weights))]


def draw_included(random: Random, inclusion: Sequence[float]) -> list[int]:
    """Different places, each with exactly its probability, in random order; as many as the probabilities add up to.

    Systematic sampling over a random order (Madow 1949, Hartley and Rao 1962): the places lie one after the other, each
    as long as its probability, and points at a distance of 1 choose. Drawing one after the other instead would favour
    light places more, the more are drawn.
    """
    number = round(math.fsum(inclusion))
    order = list(range(len(inclusion)))
    random.shuffle(order)
    chosen = [at for at in order if inclusion[at] == 1]
    uncertain = [at for at in order if inclusion[at] < 1]
    reached, point = 0.0, random.random()
    for left, at in zip(range(len(uncertain), 0, -1), uncertain, strict=True):
        reached += inclusion[at]
        # the sum of probabilities is a whole number up to rounding, so the last places may have to fill up
        if len(chosen) < number and (reached > point or left == number - len(chosen)):
            chosen.append(at)
            point += 1
    random.shuffle(chosen)
    return chosen
