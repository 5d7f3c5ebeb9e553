"""Whether the variables that the configuration gives to workers and verifiers are set."""

from __future__ import annotations

from collections.abc import Iterator

from hybridflow.control.preflight.findings import Finding
from hybridflow.control.preflight.subject import Subject
from hybridflow.environment import named
from hybridflow.errors import ConfigError


def check_environment(subject: Subject) -> Iterator[Finding]:
    """An error for each key that names a variable which is not set."""
    config = subject.config
    for key, names in (
        ("reward.environment", config.reward.environment),
        ("cluster.environment", config.cluster.environment),
    ):
        try:
            named(names, key)
        except ConfigError as error:
            yield Finding("error", str(error))
            continue
        if names:
            yield Finding("fact", f"{key}: {', '.join(names)} set")
