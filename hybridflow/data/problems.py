"""A survey of a data file, and which of its rows cannot be used: found before anything starts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hybridflow.data.rows import read_rows
from hybridflow.data.schema import BadRow, Row


@dataclass(frozen=True)
class DataSurvey:
    """One file, folder or pattern."""

    rows: list[Row | BadRow]
    """All, in order."""
    problems: list[str]
    """Rows that cannot be used: file, row, what is wrong, remedy."""
    abilities: dict[str, int]
    """Rows by ability."""
    num_several_golds: int
    """Rows with more than one right answer."""
    shortest_chars: int
    """Characters of the shortest prompt; 0 where no row can be used."""
    longest_chars: int

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    def lines(self) -> list[str]:
        """For the user."""
        kinds = ", ".join(f"{number} {ability}" for ability, number in sorted(self.abilities.items())) or "none"
        return [
            f"{self.num_rows} rows, {len(self.problems)} of them cannot be used; {kinds}",
            f"prompts of {self.shortest_chars} to {self.longest_chars} characters; "
            f"{self.num_several_golds} rows with several right answers",
        ]


def survey_rows(path: str | Path) -> DataSurvey:
    """Reads all rows. Raises DataError for what is wrong with the whole file; what is wrong with rows is told."""
    rows = read_rows(path)
    good = [row for row in rows if isinstance(row, Row)]
    lengths = [sum(len(message["content"]) for message in row.prompt) for row in good]
    return DataSurvey(
        rows=rows,
        problems=[row.why for row in rows if isinstance(row, BadRow)],
        abilities=dict(Counter(row.ability for row in good)),
        num_several_golds=sum(bool(row.reward_model.alternatives) for row in good),
        shortest_chars=min(lengths, default=0),
        longest_chars=max(lengths, default=0),
    )
