"""What a judge's answer means, read strictly: YES, NO, or unknown. Unknown is never NO.

Source: recipe section 4. The released code takes any "YES" in the text, so an explanation that holds the word passes.
Here the verdict is the last line behind the thinking, where it is the mark `[[YES]]` or `[[NO]]` and nothing else; bold
or code around it and a full stop change nothing. A mark in a sentence is none ("so [[YES]] is not warranted"), and an
answer whose thought was cut off has none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from hybridflow.config.reward_sections import THINKING_TAGS
from hybridflow.rewards.judge_prompt import NO, YES
from hybridflow.rewards.text.thinking import Tags, after_thinking

Vote = Literal["yes", "no", "unknown"]

_VERDICT = re.compile(rf"[ \t*_`]{{0,8}}({re.escape(YES)}|{re.escape(NO)})[ \t*_`]{{0,8}}\.?[ \t*_`]{{0,8}}")


def parse_vote(answer: str, tags: Tags = THINKING_TAGS) -> Vote:
    """The verdict of one whole answer of a judge; `tags` mark its thoughts.

    Example: parse_vote("Both name the same city.\\n[[YES]]") == "yes"
    """
    last_line = after_thinking(answer, tags).rstrip().rpartition("\n")[2]
    found = _VERDICT.fullmatch(last_line)
    if found is None:
        return "unknown"
    return "yes" if found[1] == YES else "no"


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
