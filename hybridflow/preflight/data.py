"""Rows: can they be read, are there enough, does each have what its judge and its verifier need."""

from __future__ import annotations

import time
from collections.abc import Iterator

from hybridflow.data.chat_template import build_answer
from hybridflow.data.row_reference import dump_row
from hybridflow.data.schema import Row
from hybridflow.data.synth.spec import Split
from hybridflow.preflight.row_source import find_questions
from hybridflow.preflight.subject import Finding, Level, Subject, name_rows
from hybridflow.rewards.extraction.extract import behind_mark
from hybridflow.types import ScoreRequest, Unknown

NUM_PROBLEMS = 10
"""Number of unusable rows that are told in full."""
GOLDS_S = 1.5
"""Time for all golds; built-in rules take a tenth of a millisecond for most."""


def check_rows(subject: Subject) -> Iterator[Finding]:
    """Counts and lengths, and every row that cannot be used."""
    for split in subject.splits:
        source = subject.source(split)
        survey = subject.survey(split)
        if survey is None:
            subject.rows(split)  # can they be generated?
            synth = subject.config.data.synth
            number = synth.num_train if split == "train" else synth.num_test
            yield Finding("fact", f"{split}: {number} rows are generated (data.synth, tier {synth.tier})")
        else:
            number = survey.num_rows - (len(survey.problems) if split == "train" else 0)
            yield Finding("fact", f"{split}: {source.name}: {'; '.join(survey.lines())}")
            level = _level_of(split, len(survey.problems), survey.num_rows)
            for problem in survey.problems[:NUM_PROBLEMS]:
                yield Finding(level, problem)
            if (more := len(survey.problems) - NUM_PROBLEMS) > 0:
                yield Finding(level, f"{source.name}: {more} more rows cannot be used")
        if split == "test" and number < (wanted := subject.config.eval.num_prompts):
            yield Finding(
                "error",
                f"eval.num_prompts = {wanted}, but the test split has {number} prompts: lower it, or give more rows "
                f"(data.test_path, data.synth.num_test). Remedy: --set eval.num_prompts={number}",
            )


def _level_of(split: Split, num_unusable: int, num_rows: int) -> Level:
    """Training refuses a bad row; a test row counts as unknown, with its reason, as long as another can be used."""
    return "error" if split == "train" or num_unusable == num_rows else "warning"


def check_questions(subject: Subject) -> Iterator[Finding]:
    """Check that each row gives the judge a question; without one it cannot judge."""
    if not subject.config.reward.judge.endpoints:
        return
    for split in subject.splits:
        rows = list(subject.rows(split).values())
        questions = find_questions(subject.config, subject.registry, rows, subject.source(split).name)
        if shown := next((question for question in questions or [] if question), ""):
            yield Finding("fact", f"{split}: the judge is asked about {shown[:120]!r}")


def check_golds(subject: Subject) -> Iterator[Finding]:
    """Every gold goes through the built-in rule of its row: what it cannot compare with makes all answers unknown."""
    ends_at = time.monotonic() + GOLDS_S
    for split in subject.splits:
        if subject.survey(split) is None:
            continue
        unusable: dict[int, str] = {}
        unmatched: list[int] = []
        num_seen = 0
        rows = subject.rows(split)
        for number, row in rows.items():
            if time.monotonic() > ends_at:
                break
            num_seen += 1
            if not subject.registry.asks_rule(row.data_source, row.ability):
                continue
            request = build_request(row, phrase_gold(row))
            verdict = subject.registry.verify_by_rule(request)
            if problem := subject.registry.find_gold_problem(row.data_source, row.ability, row.reward_model.golds):
                unusable[number] = problem
            elif isinstance(verdict, Unknown) or verdict.value < 1:
                unmatched.append(number)
        source = subject.source(split).name
        if unusable:
            yield Finding(
                _level_of(split, len(unusable), len(rows)),
                f"{source}: {len(unusable)} of {len(rows)} golds cannot be used by their verifier, "
                f"{name_rows(list(unusable))}: {next(iter(unusable.values()))}. Remedy: correct or remove these rows, "
                f"give them the ability that fits the gold, or name a verifier of your own (reward.rules.verifiers)",
            )
        if unmatched:
            yield Finding(
                "warning",
                f"{source}: {len(unmatched)} of {len(rows)} golds are not taken for right by their own verifier, "
                f"{name_rows(unmatched)}, gold {rows[unmatched[0]].reward_model.ground_truth[:80]!r}. Remedy: shorten "
                f"them to the bare answer, or configure a judge",
            )
        if num_seen < len(rows):
            yield Finding("fact", f"{source}: the golds of {num_seen} of {len(rows)} rows were tried")


def phrase_gold(row: Row) -> str:
    """A completion that gives the gold answer."""
    gold = row.reward_model.ground_truth
    return gold if behind_mark(gold) is not None else build_answer(gold)


def build_request(row: Row, text: str, completion_id: str = "check") -> ScoreRequest:
    """The request in which a verifier would see a completion `text` of this row."""
    return ScoreRequest(
        completion_id=completion_id,
        data_source=row.data_source,
        ability=row.ability,
        ground_truth=row.reward_model.ground_truth,
        alternatives=row.reward_model.alternatives,
        text=text,
        row=dump_row(row, {"prompt", "extra_info"}),
    )
