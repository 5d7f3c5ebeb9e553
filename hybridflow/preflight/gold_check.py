"""Rows that training cannot learn from: those that cannot be read, and those whose gold no answer can equal."""

from __future__ import annotations

from collections.abc import Sequence

from hybridflow.data.schema import BadRow, Row
from hybridflow.rewards.registry import Registry


def find_problems(rows: Sequence[Row | BadRow], registry: Registry, source: str) -> list[str]:
    """Names the fault of each row that cannot be used, in order."""
    problems: list[str] = []
    for number, row in enumerate(rows):
        if isinstance(row, BadRow):
            problems.append(row.why)
        elif why := registry.find_gold_problem(row.data_source, row.ability, row.reward_model.golds):
            problems.append(f"{source}, row {number}: {why}")
    return problems
