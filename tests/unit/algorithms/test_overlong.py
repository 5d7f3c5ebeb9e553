"""The recipe's formula, by hand and against its three lines as printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridflow.algorithms.overlong import compute_overlong_penalty


@pytest.mark.parametrize(
    ("num_tokens", "penalty"),
    [(0, 0.0), (9_000, 0.0), (9_001, -0.001), (9_250, -0.25), (9_500, -0.5), (10_000, -1.0), (10_001, -1.0)],
)
def test_limits_of_the_released_script(num_tokens: int, penalty: float) -> None:
    assert compute_overlong_penalty(num_tokens, max_tokens=10_000, buffer_tokens=1_000) == pytest.approx(penalty)


@given(st.integers(1, 5_000), st.integers(0, 5_000), st.integers(0, 20_000))
def test_equals_the_formula_as_printed(buffer: int, more: int, length: int) -> None:
    limit = buffer + more
    if length <= limit - buffer:
        expected = 0.0
    elif length <= limit:
        expected = ((limit - buffer) - length) / buffer
    else:
        expected = -1.0
    assert compute_overlong_penalty(length, max_tokens=limit, buffer_tokens=buffer) == pytest.approx(expected)


@pytest.mark.parametrize("buffer_tokens", [0, 101])
def test_a_buffer_that_does_not_fit_is_refused(buffer_tokens: int) -> None:
    with pytest.raises(ValueError, match=rf"buffer_tokens \({buffer_tokens}\) must be 1 to max_tokens \(100\)"):
        compute_overlong_penalty(5, max_tokens=100, buffer_tokens=buffer_tokens)
