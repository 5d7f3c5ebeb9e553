"""One verdict from several verifiers, or from several gold answers.

`[[reward.functions]]` is the mean of their values by weight:

    value = sum(weight x value of each) / sum(weights)

`call = "rule"` is the verifier that the row's data source and ability choose, beside the others. Where one is Unknown,
all of it is: a mean over the others would be a reward of another kind.

Of several gold answers of one row any is right: the verdict is the best over them. Where none gives 1 and one of the
golds cannot be compared with, the verdict is Unknown: that gold might have been the right one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from hybridflow.types import Scored, ScoreRequest, Unknown, Verdict

RULE_CALL = "rule"
"""`call` of the verifier by data source and ability among several."""


class Weighted(NamedTuple):
    """One of several."""

    name: str
    weight: float
    verify: Callable[[ScoreRequest], Verdict]
    is_rule: bool = False
    """The verifier by data source and ability: what a judge decides on, where there is one."""


def verify_all(functions: Sequence[Weighted], request: ScoreRequest) -> Verdict:
    """The mean, with the value of each under its name in `parts`; of one function alone, its own verdict and parts."""
    if len(functions) == 1:
        verdict = functions[0].verify(request)
        if isinstance(verdict, Unknown):
            return verdict
        return msgspec.structs.replace(verdict, parts=_name_parts(functions[0].name, verdict))
    verdicts: list[Scored] = []
    for function in functions:
        verdict = function.verify(request)
        if isinstance(verdict, Unknown):
            return Unknown(why=f"{function.name}: {verdict.why}", rule=function.name, extracted=verdict.extracted)
        verdicts.append(verdict)
    parts: dict[str, float] = {}
    for function, verdict in zip(functions, verdicts, strict=True):
        parts |= _name_parts(function.name, verdict)
    total = sum(function.weight for function in functions)
    value = sum(function.weight * verdict.value for function, verdict in zip(functions, verdicts, strict=True)) / total
    leader = next((n for n, function in enumerate(functions) if function.is_rule), 0)
    led, is_rule = verdicts[leader], functions[leader].is_rule
    told = "; ".join(f"{f.name} {v.value:g} x {f.weight:g}: {v.why}" for f, v in zip(functions, verdicts, strict=True))
    return Scored(
        value=min(value, 1.0),  # a sum of fractions may be above its last digit
        rule=led.rule if is_rule else " + ".join(function.name for function in functions),
        extracted=led.extracted,
        why=told,
        predicted_form=led.predicted_form if is_rule else "",
        gold_form=led.gold_form if is_rule else "",
        parts=parts,
        judged_part=functions[leader].name if is_rule else "",
        judge_share=functions[leader].weight / total if is_rule else 1.0,
    )


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
    """All golds of a row, in its order."""
    return [request.ground_truth, *request.alternatives]


def _name_parts(name: str, verdict: Scored) -> dict[str, float]:
    return {name: verdict.value} | {f"{name}/{part}": value for part, value in verdict.parts.items()}
