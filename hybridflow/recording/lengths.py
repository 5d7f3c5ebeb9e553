"""Lengths of completions over a run: are those that it trains on as long as those that it begins?

Where they are shorter, what decides about training is how soon a completion ends: steps that end early and groups that
are thrown away for their age both take the short ones, and the policy is taught to be short. Filters may choose by
length, too, if right answers are shorter than wrong ones; that is what they are for, and the ratio shows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from hybridflow.types import Collected, FilteredBatch, PartialGroup


class LengthTotals(msgspec.Struct, kw_only=True):
    """Tokens and number of completions, up to now."""

    trained_tokens: int = 0
    num_trained: int = 0
    """Rows of batches."""
    left_tokens: int = 0
    num_left: int = 0
    """Completions of groups that were trained on, filtered or discarded, with the tokens that they had then."""

    def give_up(self, groups: Iterable[PartialGroup]) -> None:
        """Counts carried groups that no step will train on."""
        num_tokens, number = _count(groups)
        self.left_tokens += num_tokens
        self.num_left += number

    def add(self, collected: Collected, filtered: FilteredBatch) -> dict[str, float]:
        """Adds a step; returns its metrics. Begun is what has left and what is carried, as far as it is decoded."""
        rows = filtered.batch.sequences if filtered.batch is not None else []
        self.num_trained += len(rows)
        self.trained_tokens += sum(len(row.response) for row in rows)
        members = [member for group in collected.groups for member in group.members]
        self.num_left += len(members) + collected.counts.num_discarded_completions
        self.left_tokens += sum(member.num_tokens for member in members) + collected.counts.discarded_tokens
        carried_tokens, num_carried = _count(collected.carried)
        trained = _mean(self.trained_tokens, self.num_trained)
        begun = _mean(self.left_tokens + carried_tokens, self.num_left + num_carried)
        return {
            "rollout/trained_length_mean": trained,
            "rollout/begun_length_mean": begun,
            "rollout/length_ratio": trained / begun if begun else math.nan,
        }


def _count(groups: Iterable[PartialGroup]) -> tuple[int, int]:
    """(tokens, completions that have any)"""
    counts = [(group.num_tokens, len(group.members) + len(group.partials)) for group in groups]
    return sum(tokens for tokens, _ in counts), sum(number for _, number in counts)


def _mean(total: int, number: int) -> float:
    return total / number if number else math.nan
