"""Several gold answers of one row, of which any is right: the verdict is the best over them.

Verifiers know one gold. Where none gives 1 and one of the golds cannot be compared with, the verdict is Unknown: that
gold might have been the right one.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from hybridflow.rewards.extraction.extract import extract_gold
from hybridflow.types import Scored, ScoreRequest, Unknown, Verdict


def verify_any(verify: Callable[[ScoreRequest], Verdict], request: ScoreRequest) -> Verdict:
    """The first verdict of 1; else Unknown where one is; else the largest, the first of equals."""
    best: Scored | None = None
    unknown: Unknown | None = None
    for gold in golds_of(request):
        verdict = verify(msgspec.structs.replace(request, ground_truth=gold, alternatives=[]))
        if isinstance(verdict, Unknown):
            unknown = unknown or verdict
        elif verdict.value >= 1.0:
            return verdict
        elif best is None or verdict.value > best.value:
            best = verdict
    verdict = unknown or best
    assert verdict is not None, "a request has a gold"
    return verdict


def golds_of(request: ScoreRequest) -> list[str]:
    """All, in the order of the row."""
    return [request.ground_truth, *request.alternatives]


def told_to_judge(request: ScoreRequest) -> str:
    """The bare gold answers as one text."""
    return " or ".join(extract_gold(gold).text or gold for gold in golds_of(request))
