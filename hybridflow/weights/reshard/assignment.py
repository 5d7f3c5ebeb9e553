"""The best one-to-one assignment: the Hungarian method with potentials and shortest augmenting paths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def assign(value_IJ: NDArray[np.int64]) -> list[int]:
    """For each row I the column J that it gets, each column once, so that the sum of values is the largest possible.

    `value_IJ` is a square matrix. Exact integers, O(n^3); of several best assignments always the same one. After
    R. Jonker, A. Volgenant, "A shortest augmenting path algorithm for dense and sparse linear assignment problems",
    Computing 38 (1987).
    """
    n = len(value_IJ)
    cost_IJ = -value_IJ
    infinity = np.iinfo(np.int64).max // 4
    price_I, price_J = np.zeros(n, np.int64), np.zeros(n + 1, np.int64)
    row_of_J = np.full(n + 1, -1)  # column n is where the search for a new row's place begins
    for new_row in range(n):
        row_of_J[n] = new_row
        column, slack_J = n, np.full(n, infinity)
        via_J, reached_J = np.full(n, n), np.zeros(n + 1, bool)
        while row_of_J[column] != -1:
            reached_J[column] = True
            row = row_of_J[column]
            candidate_J = cost_IJ[row] - price_I[row] - price_J[:n]
            shorter_J = ~reached_J[:n] & (candidate_J < slack_J)
            slack_J[shorter_J], via_J[shorter_J] = candidate_J[shorter_J], column
            nearest = int(np.argmin(np.where(reached_J[:n], infinity, slack_J)))
            step = slack_J[nearest]
            price_I[row_of_J[reached_J]] += step
            price_J[reached_J] -= step
            slack_J[~reached_J[:n]] -= step
            column = nearest
        while column != n:
            row_of_J[column] = row_of_J[via_J[column]]
            column = int(via_J[column])
    column_of_I = np.empty(n, np.int64)
    column_of_I[row_of_J[:n]] = np.arange(n)
    return column_of_I.tolist()
