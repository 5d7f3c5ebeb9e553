"""Units: what is packed and balanced as a whole.

A unit is a prefix and the branches that go on from it, which are computed together. Today each has one branch, a row of
the batch: its prompt is the prefix, its response the branch. Rows that share a prompt could be the branches of one
unit, whose prefix is then computed once; nothing makes such units yet, and whoever packs them has to know them first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hybridflow.types import TrainSequence


@dataclass(frozen=True)
class Unit:
    """Rows of a batch that share a prefix, with their lengths in tokens."""

    rows: tuple[int, ...]
    """Their numbers in the batch, one per branch."""
    prefix_tokens: int
    branch_tokens: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that it takes in a micro-batch: the prefix once."""
        return self.prefix_tokens + sum(self.branch_tokens)


Cost = Callable[[Unit], float]
"""The cost of a unit to the rank that computes it, in any unit of measure; ranks get about equal sums of it."""


def count_tokens(unit: Unit) -> float:
    """Cost where each token costs the same: true of short sequences, whose attention is cheap."""
    return unit.num_tokens


def build_units(sequences: Sequence[TrainSequence], first_row: int = 0) -> list[Unit]:
    """A unit of one branch for each row; rows are numbered from `first_row`."""
    return [
        Unit((row,), len(sequence.prompt_token_ids), (len(sequence.response),))
        for row, sequence in enumerate(sequences, first_row)
    ]
