"""What a judge's answer means, read strictly: YES, NO, or unknown. Unknown is never NO.

Source: recipe section 4. The released code takes any "YES" in the text, so an explanation that holds the word passes.
Here the verdict is the mark `[[YES]]` or `[[NO]]`, spelled like this. An answer without one, with both, or with what
looks like the other ("[[YES]] ... [[no]]") is unknown; so is one cut off while it was still thinking.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from hybridflow.rewards.characters import unify
from hybridflow.rewards.judge_prompt import NO, YES

Vote = Literal["yes", "no", "unknown"]

_MARK_LIKE = re.compile(
    r"[\[\u3010\u27e6]\s*[\[\u3010\u27e6]?[\s*_]*(yes|no)[\s*_.]*[\]\u3011\u27e7]?\s*[\]\u3011\u27e7]", re.IGNORECASE
)


def parse_vote(answer: str, *, was_cut_off: bool = False) -> Vote:
    """The verdict of one answer of a judge; `was_cut_off` where it ended at its token limit.

    Example: parse_vote("Both name the same city.\\n[[YES]]") == "yes"
    """
    _, closed, tail = answer.rpartition("</think>")
    shown = tail if closed else answer
    if was_cut_off or "<think>" in shown:
        return "unknown"
    is_yes, is_no = YES in shown, NO in shown
    looks_like = {found[1].lower() for found in _MARK_LIKE.finditer(unify(shown))}
    if is_yes and not is_no and "no" not in looks_like:
        return "yes"
    if is_no and not is_yes and "yes" not in looks_like:
        return "no"
    return "unknown"


def decide(votes: Sequence[Vote], num_asked: int) -> Vote:
    """What more than half of `num_asked` votes say; unknown while neither side has as many, or where it cannot have.

    Votes that are unknown, or were not given in time, count for neither side: two YES of three asked are YES, one YES
    and two unknown are unknown.
    """
    if len(votes) > num_asked:
        raise ValueError(f"{len(votes)} votes, but {num_asked} were asked for")
    for side in ("yes", "no"):
        if 2 * sum(vote == side for vote in votes) > num_asked:
            return side
    return "unknown"
