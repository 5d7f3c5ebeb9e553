"""Gap between trainer and engine: by hand, and against an exact KL divergence."""

from __future__ import annotations

import math

import pytest
import torch

from hybridflow.algorithms.mismatch import largest_gap, mismatch_sums


def test_by_hand() -> None:
    """Probabilities 1/2 and 1/4 against 1/4 and 1/4: log r = log 2 and 0, r - 1 - log r = 1 - log 2 and 0."""
    sums = mismatch_sums(torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.25]).log())
    assert sums.gap.item() == pytest.approx(math.log(2))
    assert sums.kl.item() == pytest.approx(1 - math.log(2), rel=1e-6)


def test_expectation_over_the_engine_is_the_divergence() -> None:
    """Weighing the estimate of each token by the engine's probability gives sum q log(q / p) exactly."""
    engine_V = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    trainer_V = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    found = sum(q * mismatch_sums(p.log()[None], q.log()[None]).kl for p, q in zip(trainer_V, engine_V, strict=True))
    assert float(found) == pytest.approx(float((engine_V * (engine_V / trainer_V).log()).sum()), rel=1e-12)


def test_tiny_differences_are_not_lost_to_cancellation() -> None:
    """r - 1 - log r is d^2 / 2 for small d; float32 exp(d) - 1 would give noise."""
    d = 1e-3
    assert mismatch_sums(torch.tensor([d]), torch.zeros(1)).kl.item() == pytest.approx(d * d / 2, rel=0.1)


def test_largest() -> None:
    assert largest_gap(torch.tensor([-1.0, -2.0]), torch.tensor([-1.25, -1.0])).item() == 1.0
    assert largest_gap(torch.zeros(0), torch.zeros(0)).item() == 0.0
