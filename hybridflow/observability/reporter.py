"""The reporter of a run, which tells its user what happens. The live display is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Reporter(Protocol):
    """Tells the user what happens, from any thread."""

    def note(self, text: str) -> None:
        """Something that a user must know; it stays to be read."""
        ...

    def progress(self, text: str) -> None:
        """Tell what goes on right now, in place of what was said before."""
        ...


@dataclass(frozen=True)
class Notes:
    """A reporter without a place for progress: notes go to a function."""

    tell: Callable[[str], None] = lambda text: None

    def note(self, text: str) -> None:
        self.tell(text)

    def progress(self, text: str) -> None:
        """Nobody looks at it."""
