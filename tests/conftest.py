"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# The same examples in every run, and no verdict by the clock: a slow machine is no reason to fail.
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")
