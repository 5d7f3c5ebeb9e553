"""The overlong penalty, by hand with the numbers of QwenLong-L1: limit 10000, buffer 1000, factor 1."""

from __future__ import annotations

import pytest

from hybridflow.algorithms.overlong import compute_overlong_penalty


@pytest.mark.parametrize(
    ("num_tokens", "penalty"),
    [
        (0, 0.0),
        (9000, 0.0),
        (9001, -0.001),
        (9250, -0.25),
        (9500, -0.5),
        (10_000, -1.0),
        (10_001, -1.0),
        (99_999, -1.0),
    ],
)
def test_it_grows_in_a_straight_line_over_the_buffer(num_tokens: int, penalty: float) -> None:
    assert compute_overlong_penalty(num_tokens, 10_000, 1000) == pytest.approx(penalty, abs=1e-12)


def test_the_factor_scales_it_and_no_buffer_switches_it_off() -> None:
    assert compute_overlong_penalty(9500, 10_000, 1000, factor=0.4) == pytest.approx(-0.2, abs=1e-12)
    assert compute_overlong_penalty(10_000, 10_000, 0) == 0.0


@pytest.mark.parametrize("buffer_tokens", [-1, 10_001])
def test_a_buffer_that_does_not_fit_is_refused(buffer_tokens: int) -> None:
    with pytest.raises(ValueError, match="must be 0 to max_tokens"):
        compute_overlong_penalty(1, 10_000, buffer_tokens)
