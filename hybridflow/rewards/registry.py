"""Chooses the verifier of a request, in one table read from the top.

| data_source contains | or ability is | verifier        |
|----------------------|---------------|-----------------|
| long_toc_choices     | doc-mc        | multiple_choice |
| docmath              | doc-math      | docmath         |
| anything             | anything      | docqa           |

Source: the dispatch of QwenLong-L1 by substring of data_source (recipe section 4); `ability` is added so that other
data sets need no special name.
"""

from __future__ import annotations

from collections.abc import Callable

from hybridflow.rewards.docmath import verify_docmath
from hybridflow.rewards.docqa import verify_docqa
from hybridflow.rewards.multiple_choice import verify_multiple_choice
from hybridflow.types import ScoreRequest, Verdict

Verifier = Callable[[str, str], Verdict]
"""(text of the completion, ground truth as stored) -> verdict. Pure; raises nothing on any text."""

_TABLE: tuple[tuple[str, str, Verifier], ...] = (
    ("long_toc_choices", "doc-mc", verify_multiple_choice),
    ("docmath", "doc-math", verify_docmath),
)


def choose_verifier(data_source: str, ability: str) -> Verifier:
    """The first row of the table that fits; docqa where none does."""
    for source_part, ability_name, verifier in _TABLE:
        if source_part in data_source or ability == ability_name:
            return verifier
    return verify_docqa


def verify(request: ScoreRequest) -> Verdict:
    """The verdict by rule on one completion: Scored 0.0 or 1.0, or Unknown where the gold cannot be compared with."""
    return choose_verifier(request.data_source, request.ability)(request.text, request.ground_truth)
