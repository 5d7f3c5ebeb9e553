"""The algorithm of a run, as the driver holds it: from scored groups to rows with advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from hybridflow.algorithms.registry import ADVANTAGES, FILTERS, MASKS
from hybridflow.algorithms.spec import AlgorithmSpec, ObjectiveSpec
from hybridflow.types import Group, TrainSequence


class GroupFilter(Protocol):
    """Says why a group is left out of training; None: it stays."""

    def __call__(self, group: Group) -> str | None: ...


class Advantage(Protocol):
    """Turns the rewards of a step's kept groups into advantages, [G] per group, in member order.

    Rewards come with penalties added, None where unknown; unknown members get None and are not trained on. A group's
    prompt says its task (`data_source`).
    """

    def __call__(
        self, groups: Sequence[Group], rewards: Sequence[Sequence[float | None]]
    ) -> list[list[float | None]]: ...


class TokenMask(Protocol):
    """Gives a row's loss mask [T]: never 1 where it was 0."""

    def __call__(self, row: TrainSequence) -> list[int]: ...


@dataclass(frozen=True)
class Algorithm:
    """Filters, advantages and masks, ready to be called, and the objective as plain data for the train workers."""

    filters: tuple[GroupFilter, ...]
    advantage: Advantage
    masks: tuple[TokenMask, ...]
    objective: ObjectiveSpec

    def reason_to_drop(self, group: Group) -> str | None:
        """The first reason that a filter has to leave the group out; None where it teaches."""
        return next((reason for keep in self.filters if (reason := keep(group)) is not None), None)

    def filter_groups(self, groups: Sequence[Group]) -> tuple[list[Group], dict[str, list[str]]]:
        """(kept groups, ids of the dropped ones by reason), both in the order given; no reason without a group."""
        kept: list[Group] = []
        dropped: dict[str, list[str]] = {}
        for group in groups:
            reason = self.reason_to_drop(group)
            if reason is None:
                kept.append(group)
            else:
                dropped.setdefault(reason, []).append(group.group_id)
        return kept, dropped

    def mask_rows(self, rows: Sequence[TrainSequence]) -> list[TrainSequence]:
        """The rows with the tokens masked that are not to be learnt from; rows without any other are left out."""
        if not self.masks:
            return list(rows)
        for mask in self.masks:
            rows = [msgspec.structs.replace(row, loss_mask=mask(row)) for row in rows]
        return [row for row in rows if any(row.loss_mask)]


def build_algorithm(spec: AlgorithmSpec) -> Algorithm:
    """Raises ConfigError for a part that is not registered, and for a parameter that one of them lacks."""
    return Algorithm(
        filters=FILTERS.build_all(spec.filters, spec.parameters),
        advantage=ADVANTAGES.build(spec.advantage, spec.parameters),
        masks=MASKS.build_all(spec.masks, spec.parameters),
        objective=spec.objective,
    )
