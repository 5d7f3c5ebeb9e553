"""One verdict from several verifiers, or from several gold answers.

`[[reward.functions]]` is the mean of their values by weight:

    value = sum(weight x value of each) / sum(weights)

`call = "rule"` is the verifier that the row's data source and ability choose, beside the others. Where one is Unknown,
all of it is: a mean over the others would be a reward of another kind.

Of several gold answers of one row any is right: the verdict is the best over them. Where none gives 1 and one of the
golds cannot be compared with, the verdict is Unknown: that gold might have been the right one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from hybridflow.types import Scored, Unknown, Verdict

RULE_CALL = "rule"
"""`call` of the verifier by data source and ability among several."""


class Share(NamedTuple):
    """One of several verifiers: its name and its weight."""

    name: str
    weight: float
    is_rule: bool = False
    """The verifier by data source and ability: what a judge decides on, where there is one."""


def mean_of(shares: Sequence[Share], verdicts: Iterable[Verdict]) -> Verdict:
    """The mean, with the value of each under its name in `parts`; of one verdict alone, that one and its parts.

    `verdicts`, one for each share, are drawn up to the first that is Unknown.
    """
    scored: list[Scored] = []
    for share, verdict in zip(shares, verdicts, strict=True):
        if isinstance(verdict, Unknown):
            if len(shares) == 1:
                return verdict
            return Unknown(why=f"{share.name}: {verdict.why}", rule=share.name, extracted=verdict.extracted)
        scored.append(verdict)
    parts: dict[str, float] = {}
    for share, verdict in zip(shares, scored, strict=True):
        parts |= _name_parts(share.name, verdict)
    if len(shares) == 1:
        return msgspec.structs.replace(scored[0], parts=parts)
    total = sum(share.weight for share in shares)
    value = sum(share.weight * verdict.value for share, verdict in zip(shares, scored, strict=True)) / total
    leader = next((n for n, share in enumerate(shares) if share.is_rule), 0)
    led, is_rule = scored[leader], shares[leader].is_rule
    told = "; ".join(f"{s.name} {v.value:g} x {s.weight:g}: {v.why}" for s, v in zip(shares, scored, strict=True))
    return Scored(
        value=min(value, 1.0),  # a sum of fractions may be above its last digit
        rule=led.rule if is_rule else " + ".join(share.name for share in shares),
        extracted=led.extracted,
        why=told,
        predicted_form=led.predicted_form if is_rule else "",
        gold_form=led.gold_form if is_rule else "",
        parts=parts,
        judged_part=shares[leader].name if is_rule else "",
        judge_share=shares[leader].weight / total if is_rule else 1.0,
    )


def best_of(verdicts: Iterable[Verdict]) -> Verdict:
    """The first verdict of 1; else Unknown where one is; else the largest, the first of equals.

    `verdicts`, at least one, are drawn up to the first of 1.
    """
    best: Scored | None = None
    unknown: Unknown | None = None
    for verdict in verdicts:
        if isinstance(verdict, Unknown):
            unknown = unknown or verdict
        elif verdict.value >= 1.0:
            return verdict
        elif best is None or verdict.value > best.value:
            best = verdict
    verdict = unknown or best
    assert verdict is not None, "a request has a gold"
    return verdict


def _name_parts(name: str, verdict: Scored) -> dict[str, float]:
    return {name: verdict.value} | {f"{name}/{part}": value for part, value in verdict.parts.items()}
