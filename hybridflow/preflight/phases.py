"""Phases of a curriculum: rows of the files that they name, and how many fall into each window."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from hybridflow.config.phases import name_keys, name_phase, phase_config, train_configs
from hybridflow.curriculum.own_source import find_source
from hybridflow.curriculum.windows import count_rows, describe_counts
from hybridflow.data.schema import Row
from hybridflow.errors import HybridFlowError
from hybridflow.preflight.data import check_golds, check_questions, check_rows
from hybridflow.preflight.machine import check_memory
from hybridflow.preflight.model import check_layouts, count_tokens
from hybridflow.preflight.subject import AlreadyToldError, Finding, Subject
from hybridflow.preflight.verifiers import check_verifiers

MOST_GENERATED_TOKENS = 2_000_000
"""Tokens of documents that are generated here to count them; a second of work."""


def check_phase_files(subject: Subject) -> Iterator[Finding]:
    """Each file that a phase names in the place of data.train_path, looked at as that one is."""
    phases = subject.config.curriculum.phases
    for path, own in _subjects(subject).items():
        if own is not subject:
            number = next(number for number, phase in enumerate(phases) if phase.train_path == path)
            named = f"curriculum.phases.{number}.train_path of phase {phases[number].name!r}"
            for check in (check_rows, check_golds, check_questions, check_verifiers):
                for one in _find(check, own):
                    yield one if one.level == "fact" else one._replace(text=f"{named}: {one.text}")


def _find(check: Callable[[Subject], Iterable[Finding]], subject: Subject) -> list[Finding]:
    """All that a check finds, what it raises for users included."""
    try:
        return list(check(subject))
    except AlreadyToldError:
        return []
    except HybridFlowError as error:
        return [Finding("error", str(error))]


def check_source(subject: Subject) -> Iterator[Finding]:
    """A source of the user's own imports, and takes what there is."""
    section = subject.config.curriculum
    if section.source is not None:
        find_source(section.source, section.module_folders)
        yield Finding("fact", f"curriculum.source = {section.source!r}: it loads")


def check_phase_layouts(subject: Subject) -> Iterator[Finding]:
    """Each layout of a phase cuts the model evenly, and finds the memory that it needs."""
    for number, phase in enumerate(subject.config.curriculum.phases):
        if phase.layout is not None:
            at = Subject(phase_config(subject.config, number), subject.saved)
            for check in (check_layouts, check_memory):
                for one in _find(check, at):
                    text = name_keys(one.text, subject.config, number)
                    yield one._replace(text=f"{name_phase(phase, number)}: {text}")


def check_windows(subject: Subject) -> Iterator[Finding]:
    """Rows per window and in none, counted with the chat template; an empty window is an error."""
    phases = subject.config.curriculum.phases
    if not phases:
        return
    rows = {path: _train_rows(own) for path, own in _subjects(subject).items()}
    lengths = {path: _count(own, rows[path] or {}) for path, own in _subjects(subject).items()}
    if any(rows[path] is None or len(lengths[path]) < len(rows[path] or {}) for path in rows):
        yield Finding("fact", "phases: too many rows to count tokens here; train counts those of each window")
        return
    limit = subject.config.data.max_prompt_tokens if subject.config.data.overlong == "drop" else math.inf
    trained = {path: [length for length in found.values() if length <= limit] for path, found in lengths.items()}
    counts, num_outside = count_rows(subject.config, trained)
    told = f"rows per window: {describe_counts(phases, counts)}"
    if num_outside:
        told += f"; in none: {num_outside}"
    if all(counts):
        yield Finding("fact", told)
        return
    yield Finding(
        "error",
        f"{told}. Remedy: move the windows (curriculum.phases; prompts are counted with their chat template), or give "
        "rows of that length",
    )


def _train_rows(subject: Subject) -> dict[int, Row] | None:
    """All rows to train on; None where too many are generated to make them all here."""
    if subject.survey("train") is not None:
        return subject.rows("train")
    if subject.config.data.synth.num_train * subject.config.data.synth.doc_tokens > MOST_GENERATED_TOKENS:
        return None
    return dict(enumerate(subject.source("train").generate(subject.config)))


def _count(subject: Subject, rows: dict[int, Row]) -> dict[int, int]:
    """Tokens of each prompt as it is trained on: a document whose middle is cut fills the limit."""
    data, lengths = subject.config.data, count_tokens(subject, rows) if rows else {}
    if data.overlong == "truncate_middle":
        return {number: min(length, data.max_prompt_tokens) for number, length in lengths.items()}
    return lengths


def _subjects(subject: Subject) -> dict[str | None, Subject]:
    """By path, what phases read; the run itself for the rows of [data]."""
    config = subject.config
    found: dict[str | None, Subject] = {}
    for path, at in train_configs(config).items() if config.curriculum.phases else []:
        found[path] = subject if path == config.data.train_path else subject.of_train_rows(at)
    return found
