"""Findings: errors, warnings and notes of a check."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from hybridflow.preflight.subject import Subject

Level = Literal["error", "warning", "fact"]
WAIT_S = 3.5
"""Longest wait for a verifier or a judge, unless the configuration sets a limit of its own for it."""
NUM_NAMED = 5
"""Number of rows with one fault that are named."""


class Finding(NamedTuple):
    """One line for the user; an error or a warning says what, where, the value and the remedy."""

    level: Level
    text: str


class Check(NamedTuple):
    """One of the list. What it raises for users (HybridFlowError) is an error found."""

    name: str
    run: Callable[[Subject], Iterable[Finding]]
    is_ahead: bool = False
    """It waits for a server, and looks at the configuration alone: begun with the first, in a thread of its own."""


def name_rows(numbers: list[int]) -> str:
    """ "row 3", "rows 3, 5", "rows 3, 5, 8, 9, 12, ..."."""
    shown = ", ".join(map(str, numbers[:NUM_NAMED])) + (", ..." if len(numbers) > NUM_NAMED else "")
    return f"row{'s' if len(numbers) > 1 else ''} {shown}"
