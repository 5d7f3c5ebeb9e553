"""The report of the checks: all of them (`hybridflow check`), or what stands in the way (`hybridflow train`)."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from hybridflow.config.preset_text import tell_preset
from hybridflow.config.sections import Config
from hybridflow.observability.visible import visible
from hybridflow.preflight.load import load_run
from hybridflow.preflight.run import QUICK, THOROUGH, refuse_errors, run_checks
from hybridflow.preflight.subject import Finding, Subject

MARKS = {"error": "ERROR", "warning": "warning", "fact": "ok"}


def refuse_run(
    config: Config | None, problems: Sequence[str], *, is_checked: bool, note: Callable[[str], None]
) -> Config:
    """The configuration of a run; `is_checked`: the quick checks have found no error, and `note` is told warnings.

    Raises ConfigError with all errors of keys, data, layout, verifiers and judge at once.
    """
    findings = [Finding("error", problem) for problem in problems]
    if config is not None and is_checked:
        findings += run_checks(QUICK, Subject(config))
    refuse_errors(findings)
    assert config is not None
    for finding in findings:
        if finding.level == "warning":
            note(finding.text)
    return config


def report_run(files: Sequence[Path], overrides: Sequence[str]) -> int:
    """Prints every finding as it comes; returns the number of errors."""
    began = time.monotonic()
    levels: Counter[str] = Counter()
    told: set[Finding] = set()

    def tell(name: str, finding: Finding) -> None:
        if finding in told:
            return  # a thorough check finds again what a quick one has found
        told.add(finding)
        levels[finding.level] += 1
        head, *rest = finding.text.splitlines() or [""]
        lines = [f"{MARKS[finding.level]:8}{name:10} {head}", *(f"{'':19}{line}" for line in rest)]
        print("\n".join(map(visible, lines)), flush=True)

    config, problems = load_run(files, overrides)
    for problem in problems:
        tell("keys", Finding("error", problem))
    if config is not None:
        if not problems:
            tell("keys", Finding("fact", f"{', '.join(map(str, files))}: every key and value is known"))
            if (preset := tell_preset(config)) is not None:
                tell("keys", Finding("fact", preset))
        subject = Subject(config)
        run_checks(QUICK, subject, tell)
        print("reading the model with the libraries of the run ...", file=sys.stderr, flush=True)
        run_checks(THOROUGH, subject, tell)
    seconds = time.monotonic() - began
    print(f"{_count(levels['error'], 'error')}, {_count(levels['warning'], 'warning')} in {seconds:.1f} s")
    return levels["error"]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
