"""Settings of all tests."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

# The same examples in every run, and no verdict by the clock: a slow machine is no reason to fail.
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")


# A shell script lets what it starts in the background ignore Ctrl-C, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SLOWEST = ("test_campaign.py", "stack_cpu", "dist_cpu", "test_linear.py")
"""Files and folders. A campaign and `test_linear.py` take minutes of `make test-full`, each on one worker."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest first, so that the workers of `make test` and `make test-full` end together."""

    def rank(item: pytest.Item) -> int:
        return next((n for n, name in enumerate(SLOWEST) if name in item.path.parts), len(SLOWEST))

    items.sort(key=rank)
