"""The outcome of one check, and how two results of the same are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hybridflow.errors import HybridFlowError

TOLERANCE = 1e-9
"""Largest difference in float64, relative to 1 + the larger of two numbers: sums in another order differ by less."""


@dataclass(frozen=True)
class Outcome:
    """One line of the report."""

    check: str
    is_kept: bool
    told: str
    """Numbers: what was compared and how far it was apart; of a break, what broke and where."""
    stops_runs: bool = False
    """Without it a run cannot be, or other parts compute on what this one changed: the rest are wrong results in some
    packing, order or layout."""


class BrokenError(Exception):
    """A promise of a part that does not hold; the text says where, with numbers."""


Check = Callable[[], str]
"""Returns what was compared, or raises."""


def run_checks(needed: Mapping[str, Check], promised: Mapping[str, Check]) -> Iterator[Outcome]:
    """Outcomes in order. Where one that is `needed` breaks, those behind it would only say so again: left out."""
    for name, check in {**needed, **promised}.items():
        outcome = _run(name, check, stops_runs=name in needed)
        yield outcome
        if outcome.stops_runs and not outcome.is_kept:
            return


def _run(name: str, check: Check, *, stops_runs: bool) -> Outcome:
    try:
        return Outcome(name, True, check(), stops_runs)
    except (BrokenError, HybridFlowError) as error:
        return Outcome(name, False, str(error), stops_runs)
    except Exception as error:  # the code of a part may raise anything
        return Outcome(name, False, f"it raised {type(error).__name__}: {error}", stops_runs)


def compare(expected: Mapping[str, Any], found: Mapping[str, Any], what: str, of: str) -> str:
    """Tells how far apart two results by name of place are. Raises BrokenError where it is too far.

    Args:
        expected: Numbers by place, None where there is none.
        what: How the second came about.
        of: What the numbers are.
    """
    largest = 0.0
    for place, one in expected.items():
        other = found.get(place)
        if one == other:
            continue
        if one is None or other is None or not abs(one - other) <= TOLERANCE * (1 + max(abs(one), abs(other))):
            raise BrokenError(f"{what}: {place} is {_show(other)} where it was {_show(one)}")
        largest = max(largest, abs(one - other))
    return f"{len(expected)} {of}, largest difference {largest:.1g}"


def _show(value: float | None) -> str:
    return "none" if value is None else f"{value:.9g}"
