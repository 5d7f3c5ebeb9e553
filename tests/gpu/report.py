"""The report of a check: figures as they come, and what is not as it should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Report:
    """The report of one check; `send` gets each figure and fault at once, so that a killed check keeps its."""

    def __init__(self, send: Callable[[tuple[str, Any]], None]) -> None:
        self._send = send

    def note(self, **figures: Any) -> None:
        """Figures of the line; floats are rounded to 5 significant digits."""
        self._send(("figures", {name: _round(value) for name, value in figures.items()}))

    def require(self, holds: bool, otherwise: str) -> None:
        """A fault, and the check goes on, unless it holds."""
        if not holds:
            self._send(("fault", otherwise))


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _round(inner) for name, inner in value.items()}
    return [_round(inner) for inner in value] if isinstance(value, list) else value
