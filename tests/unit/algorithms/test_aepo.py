"""AEPO's hysteresis on sequences worked by hand: thresholds 0.5 and 0.3 nats."""

from __future__ import annotations

import math

import pytest

from hybridflow.algorithms.aepo import EntropyControl, mean_entropy

CONTROL = EntropyControl(high=0.5, low=0.3)


@pytest.mark.parametrize(
    ("entropies", "masking"),
    [
        ([0.2, 0.4, 0.5, 0.49], "...."),  # never above high
        ([0.4, 0.51, 0.45, 0.31, 0.29, 0.4, 0.5], ".###..."),  # from above high until below low
        ([0.6, 0.3, 0.3, 0.2], "###."),  # at low it holds on
        ([0.9, 0.1, 0.9, 0.1], "#.#."),
        ([0.4, math.nan, 0.6, math.nan, 0.2], "..##."),  # a batch without a token changes nothing
    ],
)
def test_masking_begins_above_high_and_ends_below_low(entropies: list[float], masking: str) -> None:
    is_masking, states = False, ""
    for entropy in entropies:
        is_masking = CONTROL.next_state(is_masking, entropy)
        states += "#" if is_masking else "."
    assert states == masking


def test_the_entropy_of_a_batch_counts_each_token_alike() -> None:
    assert mean_entropy([[1.0, 2.0, 3.0], [6.0], []]) == 3.0
    assert math.isnan(mean_entropy([[], []]))
