"""Admission of groups: how many may be under way, and which have to be complete before a step may end. Pure.

A step that ends with its first complete groups takes the short ones. The long ones are not lost as long as they are
carried over; they are if they are thrown away when their first tokens become too old, and a policy whose long
completions are never trained on is taught to be short. So no group is thrown away for its age. With N groups trained
in a step and a bound of b versions,

- at most N (b + 1) groups are under way (`RolloutSection.count_under_way`): as many as steps take, N each, while the
  oldest is within its bound;
- a step waits for old groups where later ones could not take them all. Of the groups that may still be trained on with
  version v + j, N j can wait for a later step at version v; the others have to be complete in this one.

Each step takes complete groups oldest first. Then, by induction over steps, a step never waits for more than N groups,
and none is older than b versions when it is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Due(NamedTuple):
    """So many of the first groups of a step have to be complete before it ends."""

    num_first: int
    num_complete: int


def find_due(oldest_versions: Sequence[int], version: int, num_needed: int, max_staleness: int) -> list[Due]:
    """Gives what a step at `version` has to complete, at most one entry for each version that is within the bound.

    Args:
        oldest_versions: Of each carried group, in ascending order; a step that decodes them in this order is asked for.
        max_staleness: 0: nothing is due, as nothing can be kept.
    """
    found: list[Due] = []
    for ahead in range(max_staleness):
        num_first = sum(oldest + max_staleness <= version + ahead for oldest in oldest_versions)
        num_complete = min(num_first - num_needed * ahead, num_needed)
        if num_complete > 0:
            found.append(Due(num_first, num_complete))
    return found
