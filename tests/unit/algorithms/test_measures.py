"""Gap between trainer and engine: by hand, and against an exact KL divergence."""

from __future__ import annotations

import math

import pytest
import torch

from hybridflow.algorithms.measures import EngineMismatch
from hybridflow.algorithms.objective import TokenBatch
from hybridflow.algorithms.reductions import reduce_tokens


def mismatch(trainer_N: torch.Tensor, engine_N: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sums and maxima over tokens, all of the present policy."""
    measure, staleness_N = EngineMismatch(), torch.zeros_like(trainer_N)
    columns = {"old_logprobs": trainer_N, "rollout_logprobs": engine_N, "staleness": staleness_N}
    reduced = reduce_tokens(measure(TokenBatch(trainer_N, columns)), measure.metrics, trainer_N, staleness_N, 1)
    return reduced.sums | reduced.maxima


def test_by_hand() -> None:
    """Probabilities 1/2 and 1/4 against 1/4 and 1/4: log r = log 2 and 0, r - 1 - log r = 1 - log 2 and 0."""
    sums = mismatch(torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.25]).log())
    assert sums["policy/logprob_gap"].item() == pytest.approx(math.log(2))
    assert sums["policy/logprob_kl"].item() == pytest.approx(1 - math.log(2), rel=1e-6)


def test_expectation_over_the_engine_is_the_divergence() -> None:
    """Weighing the estimate of each token by the engine's probability gives sum q log(q / p) exactly."""
    engine_V = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    trainer_V = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    pairs = zip(trainer_V, engine_V, strict=True)
    found = sum(q * mismatch(p.log()[None], q.log()[None])["policy/logprob_kl"] for p, q in pairs)
    assert float(found) == pytest.approx(float((engine_V * (engine_V / trainer_V).log()).sum()), rel=1e-12)


def test_tiny_differences_are_not_lost_to_cancellation() -> None:
    """r - 1 - log r is d^2 / 2 for small d; float32 exp(d) - 1 would give noise."""
    d = 1e-3
    assert mismatch(torch.tensor([d]), torch.zeros(1))["policy/logprob_kl"].item() == pytest.approx(d * d / 2, rel=0.1)


def test_largest() -> None:
    assert mismatch(torch.tensor([-1.0, -2.0]), torch.tensor([-1.25, -1.0]))["policy/logprob_gap_max"].item() == 1.0
    assert mismatch(torch.zeros(0), torch.zeros(0))["policy/logprob_gap_max"].item() == 0.0
