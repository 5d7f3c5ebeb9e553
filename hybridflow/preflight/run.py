"""The lists of checks, and what becomes of their findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hybridflow.config.sections import Config
from hybridflow.errors import ConfigError, HybridFlowError
from hybridflow.preflight import algorithm, data, machine, model, phases, routing, verifiers
from hybridflow.preflight.subject import AlreadyToldError, Check, Finding, Subject


def _check_judge(subject: Subject) -> Iterator[Finding]:
    if subject.config.reward.judge.endpoints:
        from hybridflow.preflight.judge import check_judge  # its HTTP client takes a quarter of a second

        yield from check_judge(subject)


QUICK = (
    Check("model", model.check_folder),
    Check("reference", model.check_reference_folder),
    Check("layout", model.check_layouts),
    Check("experts", routing.check_routing),
    Check("data", data.check_rows),
    Check("golds", data.check_golds),
    Check("questions", data.check_questions),
    Check("verifiers", verifiers.check_verifiers),
    Check("algorithm", algorithm.check_functions),
    Check("source", phases.check_source),
    Check("phases", phases.check_phase_files),
    Check("phases", phases.check_phase_layouts),
    Check("judge", _check_judge, is_ahead=True),
    Check("environment", machine.check_environment),
    Check("limits", machine.check_limits),
    Check("kernels", machine.check_kernels),
    Check("memory", machine.check_memory),
    Check("disk", machine.check_disk),
)
"""Without torch, but for functions of an algorithm, and transformers."""
THOROUGH = (
    Check("model", model.check_model_files),
    Check("prompts", model.check_prompts),
    Check("phases", phases.check_windows),
)
Tell = Callable[[str, Finding], None]


def run_checks(checks: Iterable[Check], subject: Subject, tell: Tell = lambda name, finding: None) -> list[Finding]:
    """All findings, in order; `tell` is called with the name of the check and each of them as it comes."""
    findings: list[Finding] = []
    checks = list(checks)
    with ThreadPoolExecutor(thread_name_prefix="check") as pool:
        ahead = {check.name: pool.submit(list, _findings_of(check, subject)) for check in checks if check.is_ahead}
        for check in checks:
            for finding in ahead[check.name].result() if check.is_ahead else _findings_of(check, subject):
                findings.append(finding)
                tell(check.name, finding)
    return findings


def refuse_errors(findings: Iterable[Finding]) -> None:
    """Raises ConfigError with all that are errors; returns where none is."""
    errors = [finding.text for finding in findings if finding.level == "error"]
    if len(errors) == 1:
        raise ConfigError(errors[0])
    if errors:
        raise ConfigError("\n".join([f"{len(errors)} problems", *(f"  {error}" for error in errors)]))


def check_quickly(config: Config, saved: Path) -> None:
    """For a run that is resumed, with the rows in `saved`. Raises ConfigError with all errors at once."""
    refuse_errors(run_checks(QUICK, Subject(config, saved)))


def _findings_of(check: Check, subject: Subject) -> Iterator[Finding]:
    try:
        yield from check.run(subject)
    except AlreadyToldError:
        return
    except HybridFlowError as error:
        yield Finding("error", str(error))
