"""Metrics of the weights that corrections give to tokens.

Shape legend: N counted tokens of one micro-batch on this rank, R its rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from hybridflow.algorithms.reductions import Reduction
from hybridflow.errors import ProtocolError

if TYPE_CHECKING:
    from hybridflow.algorithms.objective import Rows, TokenBatch

WEIGHT_METRICS = {
    "correction/weight_mean": Reduction("mean"),
    "correction/effective_sample_size": Reduction("effective_size"),
    "correction/masked_fraction": Reduction("mean"),
    "correction/masked_sequence_fraction": Reduction("mean", of_sequences=True),
}
"""Metrics of the product of all corrections. A weight of 0 masks a token; a sequence is masked where all are."""


def measure_weights(weight_N: Tensor, tokens: TokenBatch) -> dict[str, Tensor]:
    """Values [N] of `WEIGHT_METRICS`. Collective over the ranks that share rows."""
    is_masked_N = (weight_N == 0).to(weight_N.dtype)
    return {
        "correction/weight_mean": weight_N,
        "correction/effective_sample_size": weight_N,
        "correction/masked_fraction": is_masked_N,
        "correction/masked_sequence_fraction": 1 - any_of_row(1 - is_masked_N, rows_of(tokens)),
    }


def rows_of(tokens: TokenBatch) -> Rows:
    """Raises ProtocolError where there is no micro-batch behind the tokens."""
    if tokens.rows is None:
        raise ProtocolError("a correction tells of whole sequences: it needs the rows of its micro-batch")
    return tokens.rows


def any_of_row(is_so_N: Tensor, rows: Rows) -> Tensor:
    """[N] of 0 and 1: whether any token of the row is so, for each of its tokens. Collective as `rows.sum` is."""
    return (rows.spread(rows.sum(is_so_N)) > 0).to(is_so_N.dtype)
