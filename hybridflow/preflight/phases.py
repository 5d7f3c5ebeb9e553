"""Phases of a curriculum: rows of the files that they name, and how many fall into each window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hybridflow.config.phases import name_phase, phase_config, train_configs
from hybridflow.config.sections import Config
from hybridflow.curriculum.own_source import find_source
from hybridflow.curriculum.windows import count_rows, describe_counts
from hybridflow.errors import HybridFlowError
from hybridflow.preflight.data import check_golds, check_questions, check_rows
from hybridflow.preflight.machine import check_memory
from hybridflow.preflight.model import check_layouts, count_tokens
from hybridflow.preflight.subject import Finding, Subject
from hybridflow.preflight.verifiers import check_verifiers


def check_phase_files(subject: Subject) -> Iterator[Finding]:
    """Each file that a phase names in the place of data.train_path, looked at as that one is."""
    for own in _subjects(subject).values():
        if own is not subject:
            for check in (check_rows, check_golds, check_questions, check_verifiers):
                yield from check(own)


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
                try:
                    found = list(check(at))
                except HybridFlowError as error:
                    found = [Finding("error", str(error))]
                yield from (one._replace(text=f"{name_phase(phase, number)}: {one.text}") for one in found)


def check_windows(subject: Subject) -> Iterator[Finding]:
    """Rows per window and in none, counted with the chat template; an empty window is an error."""
    phases = subject.config.curriculum.phases
    if not phases:
        return
    lengths = {path: count_tokens(own, own.rows("train")) for path, own in _subjects(subject).items()}
    if any(len(lengths[path]) < len(own.rows("train")) for path, own in _subjects(subject).items()):
        yield Finding("fact", "phases: too many rows to count tokens here; train counts those of each window")
        return
    if any(own.survey("train") is None for own in _subjects(subject).values()):
        yield Finding("fact", "phases: train counts the rows of each window when it has generated them")
        return
    trained = {path: _find_trained(subject.config, found.values()) for path, found in lengths.items()}
    counts, num_outside = count_rows(subject.config, trained)
    told = f"rows per window: {describe_counts(phases, counts)}"
    if num_outside:
        told += f"; in none: {num_outside}"
    if all(counts):
        yield Finding("fact", told)
        return
    yield Finding(
        "error",
        f"{told}. A prompt is counted with its chat template, as the model reads it. Remedy: move the windows "
        "(curriculum.phases), or give rows of that length",
    )


def _find_trained(config: Config, lengths: Iterable[int]) -> list[int]:
    """Lengths of the prompts that training has, of rows of these: without those left out, and after cuts."""
    limit, overlong = config.data.max_prompt_tokens, config.data.overlong
    kept = [length for length in lengths if length <= limit or overlong != "drop"]
    return [min(length, limit) for length in kept] if overlong == "truncate_middle" else kept


def _subjects(subject: Subject) -> dict[str | None, Subject]:
    """By path, what phases read; the run itself for the rows of [data]."""
    config = subject.config
    found: dict[str | None, Subject] = {}
    for path, at in train_configs(config).items() if config.curriculum.phases else []:
        found[path] = subject if path == config.data.train_path else subject.of_train_rows(at)
    return found
