"""One row of each kind, scored with its gold and with an empty answer; a user's code runs in a killable process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from hybridflow.config.reward_sections import RewardSection
from hybridflow.control.preflight.data import build_request, phrase_gold
from hybridflow.control.preflight.findings import WAIT_S, Finding
from hybridflow.control.preflight.subject import Subject
from hybridflow.data.schema import Row
from hybridflow.reward_service.limits import setup_of
from hybridflow.reward_service.process_scorer import ProcessScorer
from hybridflow.reward_service.rules import BUILD_RULES, rule_arguments
from hybridflow.types import Unknown, Verdict

POLL_S = 0.01
MAX_KINDS = 8
CLEAR_DIFFERENCE = 0.5
"""Between the gold and an empty answer, for a verifier that tells them apart."""


@dataclass(frozen=True)
class _Sample:
    """A row that stands for all that one verifier judges."""

    where: str
    verifier: str
    row: Row


def check_verifiers(subject: Subject) -> Iterator[Finding]:
    """They load, take the arguments that there are, and give a number for the gold and for nothing at all."""
    registry = subject.registry
    samples: dict[str, _Sample] = {}
    for split in subject.splits:
        source = subject.source(split).name
        for number, row in subject.rows(split).items():
            name = registry.name_of(row.data_source, row.ability)
            # a gold that is none says nothing of the verifier, and `check_golds` has told it
            if name not in samples and not registry.find_gold_problem(
                row.data_source, row.ability, row.reward_model.golds
            ):
                samples[name] = _Sample(f"{source}, row {number}", name, row)
    chosen = list(samples.values())[:MAX_KINDS]
    if not chosen:
        return
    own = [sample for sample in chosen if registry.is_own(sample.row.data_source, sample.row.ability)]
    verdicts = score(subject.config.reward, [(sample.row, text) for sample in own for text in _texts(sample.row)])
    for sample in chosen:
        if sample in own:
            gold, empty = verdicts[:2]
            del verdicts[:2]
        else:  # code that is known to end
            gold, empty = (registry.verify(build_request(sample.row, text)) for text in _texts(sample.row))
        yield from _judge(sample, gold, empty)


def _texts(row: Row) -> tuple[str, str]:
    return phrase_gold(row), ""


def _judge(sample: _Sample, gold: Verdict, empty: Verdict) -> Iterator[Finding]:
    for verdict, what in ((gold, "its gold"), (empty, "an empty answer")):
        if isinstance(verdict, Unknown):
            remedy = "" if "Remedy:" in verdict.why else f". Remedy: {_remedy(verdict.why)}"
            yield Finding("error", f"{sample.where}: {sample.verifier} has no verdict on {what}: {verdict.why}{remedy}")
            return
    if isinstance(gold, Unknown) or isinstance(empty, Unknown):
        return
    told = f"{sample.where}: {sample.verifier} gives {gold.value:g} to its gold and {empty.value:g} to an empty answer"
    if gold.value > empty.value:
        yield Finding("fact" if gold.value - empty.value >= CLEAR_DIFFERENCE else "warning", told)
    else:
        yield Finding(
            "warning",
            f"{told}. Remedy: look whether it expects another form of answer than {phrase_gold(sample.row)[:80]!r}, "
            f"and whether it compares with the gold at all",
        )


def _remedy(why: str) -> str:
    if "no number from 0 to 1" in why:
        return "let it return a number from 0 to 1, or a dict with 'value'"
    if "longer than" in why or "CPU time" in why:
        return "make it faster, or set reward.item_timeout_s and reward.cpu_limit_s to what it needs"
    return "mend the verifier, or the row that it cannot judge; `hybridflow score --verifier` tries it on responses"


def score(section: RewardSection, items: list[tuple[Row, str]]) -> list[Verdict]:
    """Verdicts in the order of `items`. RewardError where the verifiers cannot be loaded."""
    if not items:
        return []
    is_set = "item_timeout_s" in section.model_fields_set
    wall_s = section.item_timeout_s if is_set else min(section.item_timeout_s, WAIT_S)
    limited = section.model_copy(update={"item_timeout_s": wall_s, "cpu_limit_s": min(section.cpu_limit_s, wall_s)})
    scorer = ProcessScorer(setup_of(limited, BUILD_RULES, **rule_arguments(section)))
    verdicts: dict[str, Verdict] = {}
    try:
        for number, (row, text) in enumerate(items):
            scorer.submit(build_request(row, text, str(number)))
        while len(verdicts) < len(items):
            verdicts |= scorer.take_verdicts()
            time.sleep(POLL_S)
    finally:
        scorer.close()
    return [verdicts[str(number)] for number in range(len(items))]
