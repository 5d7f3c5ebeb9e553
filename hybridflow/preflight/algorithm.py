"""Functions of the user's own in `[algorithm]`: each is tried on made-up values, by the invariance suite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hybridflow.algorithms.spec import algorithm_spec
from hybridflow.errors import HybridFlowError
from hybridflow.find_function import limited_in_time
from hybridflow.preflight.subject import Finding, Subject

if TYPE_CHECKING:
    from hybridflow.algorithms.invariances.suite import Kind

NO_REFERENCE = (
    'it takes ref_logprobs, and algorithm.kl.place = "off" has no reference policy. Remedy: set algorithm.kl.place, '
    "algorithm.kl.reference and algorithm.kl.coefficient, or do without it"
)
TRIAL_S = 60.0
"""Longest import and trial of one function."""


def check_functions(subject: Subject) -> Iterator[Finding]:
    """They load, take what there is, and return what they must; a promise that they break otherwise is a warning."""
    section = subject.config.algorithm
    if not section.functions:
        yield from _refuse_unused(section.parameters, set())
        return
    from hybridflow.algorithms.invariances.suite import REGISTRIES  # torch, which takes a second
    from hybridflow.algorithms.objective import REF_LOGPROBS, build_objective

    parameters = section.model_dump()
    taken: set[str] = set()
    all_load = True
    for key, names in section.functions.items():
        kind: Kind = key  # type: ignore[assignment]
        for name in names:
            try:
                with limited_in_time(TRIAL_S, f"a trial of {name}"):
                    function = REGISTRIES[kind].build(name, parameters).function
                    taken |= set(function.settings)
                    yield from _try(kind, name, parameters)
                if REF_LOGPROBS in function.takes and not section.kl.is_on:
                    yield Finding("error", f"{function.where}: {NO_REFERENCE}")
            except HybridFlowError as error:
                all_load = False
                yield Finding("error", str(error))
    if all_load:
        yield from _refuse_unused(section.parameters, taken)
        try:
            build_objective(algorithm_spec(subject.config).objective)
        except HybridFlowError as error:  # a loss of sequences wants its aggregation
            yield Finding("error", str(error))


def _try(kind: Kind, name: str, parameters: dict[str, Any]) -> Iterator[Finding]:
    from hybridflow.algorithms.invariances.suite import check_part

    where = f"algorithm.{kind} = {name!r}"
    outcomes = list(check_part(kind, name, parameters))
    for outcome in outcomes:
        if outcome.is_kept:
            continue
        told = outcome.told.removeprefix(f"{where}: ")
        remedy = "" if "Remedy:" in told else f". Remedy: mend it; hybridflow check-algorithm {name} --kind {kind}"
        if outcome.stops_runs:
            yield Finding("error", f"{where}: {outcome.check}: {told}{remedy}")
        else:
            yield Finding("warning", f"{where} breaks {outcome.check}: {told}{remedy}")
    if all(outcome.is_kept for outcome in outcomes):
        yield Finding("fact", f"{where}: {len(outcomes)} checks; {outcomes[0].told}")


def _refuse_unused(parameters: dict[str, Any], taken: set[str]) -> Iterator[Finding]:
    unused = sorted(set(parameters) - taken)
    if unused:
        shown = ", ".join(f"algorithm.parameters.{name} = {parameters[name]!r}" for name in unused)
        yield Finding(
            "error",
            f"{shown}: no function of algorithm.loss, advantage, filter or metrics takes it. Remedy: remove it, or "
            f"name it among the parameters of the function that it is for",
        )
