"""AEPO: while the policy is too random, completions of negative advantage are not learnt from.

Source: adaptive entropy-controlled policy optimisation of QwenLong-L1.5, arXiv 2512.12967: once the entropy of a batch
is above `high`, all negative samples are masked until it is below `low`. The paper publishes neither threshold. The
snippet in its README compares otherwise (low < entropy < high) and is not followed.

A negative sample pushes probability away from tokens that were drawn, to all others, and so raises entropy; positive
ones alone lower it. Between the thresholds it stays as it is: a single threshold would switch in each step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EntropyControl:
    """The two thresholds, in nats per token; `low` is below `high`."""

    high: float
    low: float

    def next_state(self, is_masking: bool, entropy: float) -> bool:
        """Whether the batch of this entropy is trained on without its negative samples.

        `is_masking` is what held for the batch before; at a threshold, and where the entropy is not a number (no
        token), it holds on.
        """
        if is_masking:
            return not entropy < self.low
        return entropy > self.high


def mean_entropy(rows: Iterable[Sequence[float]]) -> float:
    """Mean over the tokens of all rows, given the entropy at each; not-a-number without a token."""
    values = [value for row in rows for value in row]
    return math.fsum(values) / len(values) if values else math.nan
