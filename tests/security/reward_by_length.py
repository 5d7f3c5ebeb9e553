"""A verifier for a policy that knows nothing: rewards that differ within a group, so that each step trains."""

from __future__ import annotations


def verify(response: str, ground_truth: str) -> float:
    return float(len(response) % 2)
