"""One row of each kind, scored with its gold and with an empty answer; a user's code runs in a killable process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from hybridflow.config.reward_sections import RewardSection
from hybridflow.data.schema import Row
from hybridflow.preflight.data import build_request, phrase_gold
from hybridflow.preflight.subject import WAIT_S, Finding, Subject
from hybridflow.reward_service.sandbox.process_scorer import ProcessScorer
from hybridflow.reward_service.sandbox.protocol import rules_setup
from hybridflow.types import ScoreRequest, Unknown, Verdict

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
    verdicts = {sample.verifier: list(found) for sample, *found in _score(subject.config.reward, own)}
    for sample in chosen:
        if sample not in own:  # code that is known to end
            verdicts[sample.verifier] = [
                registry.verify(build_request(sample.row, text)) for text in _texts(sample.row)
            ]
        if sample.verifier in verdicts:
            yield from _judge(sample, *verdicts[sample.verifier])
        else:
            yield Finding("warning", f"{sample.where}: {sample.verifier} was not tried: those before it took too long")


def _texts(row: Row) -> tuple[str, str]:
    return phrase_gold(row), ""


def _judge(sample: _Sample, gold: Verdict, empty: Verdict | None = None) -> Iterator[Finding]:
    for verdict, what in ((gold, "its gold"), (empty, "an empty answer")):
        if isinstance(verdict, Unknown):
            remedy = "" if "Remedy:" in verdict.why else f". Remedy: {_remedy(verdict.why)}"
            yield Finding("error", f"{sample.where}: {sample.verifier} has no verdict on {what}: {verdict.why}{remedy}")
            return
    if isinstance(gold, Unknown) or empty is None or isinstance(empty, Unknown):
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


def _score(section: RewardSection, samples: list[_Sample]) -> Iterator[tuple[_Sample, *tuple[Verdict, ...]]]:
    """Each sample with the verdict on its gold and, where there is one, that on an empty answer; no more samples once
    the limit of one item has passed. RewardError where the verifiers cannot be loaded.
    """
    if not samples:
        return
    is_set = "item_timeout_s" in section.model_fields_set
    wall_s = section.item_timeout_s if is_set else min(section.item_timeout_s, WAIT_S)
    limited = section.model_copy(update={"item_timeout_s": wall_s, "cpu_limit_s": min(section.cpu_limit_s, wall_s)})
    scorer = ProcessScorer(rules_setup(limited))
    ends_at = time.monotonic() + wall_s
    try:
        for sample in samples:
            verdicts: list[Verdict] = []
            for what, text in zip(("gold", "empty answer"), _texts(sample.row), strict=True):
                if not any(isinstance(verdict, Unknown) for verdict in verdicts):
                    verdicts.append(_score_one(scorer, build_request(sample.row, text, f"{sample.where}, {what},")))
            yield sample, *verdicts
            if time.monotonic() > ends_at:
                return
    finally:
        scorer.close()


def _score_one(scorer: ProcessScorer, request: ScoreRequest) -> Verdict:
    scorer.submit(request)
    while not (found := scorer.take_verdicts()):
        time.sleep(POLL_S)
    return found[0][1]
