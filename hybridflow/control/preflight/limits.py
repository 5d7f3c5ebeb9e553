"""Whether the system grants what processes of a run need: names of sockets, files, shared memory, a cluster."""

from __future__ import annotations

from collections.abc import Iterator

from hybridflow.cluster.limits import find_problems
from hybridflow.control.preflight.findings import Finding
from hybridflow.control.preflight.subject import Subject


def check_limits(subject: Subject) -> Iterator[Finding]:
    """The same for every configuration."""
    problems = list(find_problems())
    yield from (Finding("error", problem) for problem in problems)
    if not problems:
        yield Finding("fact", "folder for temporary files, open files and shared memory suffice")
