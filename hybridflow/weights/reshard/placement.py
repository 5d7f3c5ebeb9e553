"""Placement of engines: the GPU that each rank of each engine runs on, and how far two GPUs are apart.

Trainer rank i is on GPU i. Rank r of engine e is on GPU e x tp + r unless ranks of a node change places so that more of
what they need is on their own GPU already. Example: train TP 8, rollout TP 4. GPU g holds eighth g of every matrix, and
quarter r is made of eighths 2r and 2r + 1. In the order 0 1 2 3 | 4 5 6 7 two GPUs of eight hold anything of what they
need; in the order 0 2 4 6 | 1 3 5 7 each holds half of it. An engine is given its GPUs in this order
(CUDA_VISIBLE_DEVICES, rollout/engine/actor.py). The order is the best one-to-one assignment, by the Hungarian method
with potentials and shortest augmenting paths.
"""

from __future__ import annotations

from enum import StrEnum

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


Engines = tuple[tuple[int, ...], ...]
"""For each engine, the GPU of each of its ranks."""


class Link(StrEnum):
    """The way between two GPUs."""

    DEVICE = "device"
    NVLINK = "nvlink"
    NETWORK = "network"


def link_between(source: int, destination: int, gpus_per_node: int) -> Link:
    if source == destination:
        return Link.DEVICE
    return Link.NVLINK if source // gpus_per_node == destination // gpus_per_node else Link.NETWORK


def place_engines(held_GR: NDArray[np.int64], gpus_per_node: int, num_engines: int | None = None) -> Engines:
    """The placement under which the fewest elements move between GPUs; as many ranks as that allows stay in order.

    `held_GR[g, r]` is how many elements GPU g holds of what an engine's rank r needs. Ranks change places within a
    node, and across engines only where each engine of the node is whole: no engine is on more nodes than in order.
    With `num_engines` there are only so many, and GPUs are left free; None: as many as there is room for.
    """
    num_gpus, tp = held_GR.shape
    room = num_gpus // tp
    count = room if num_engines is None else min(num_engines, room)
    slots = [(gpu // tp, gpu % tp) for gpu in range(num_gpus)]
    whole_engines = gpus_per_node % tp == 0
    domains: dict[tuple[int, int], list[int]] = {}
    for gpu, (engine, _) in enumerate(slots):
        domains.setdefault((gpu // gpus_per_node, 0 if whole_engines else engine), []).append(gpu)
    engines = [[0] * tp for _ in range(room)]
    solved: dict[bytes, list[int]] = {}  # nodes are mostly alike
    for gpus in domains.values():
        ranks = [slots[gpu][1] for gpu in gpus]
        taken = np.array([slots[gpu][0] < count for gpu in gpus])
        held = held_GR[np.ix_(gpus, ranks)] * taken
        if held.tobytes() not in solved:
            # Elements count first; then, by less than one element, ranks that stay where they are.
            solved[held.tobytes()] = assign(held * (len(gpus) + 1) + np.eye(len(gpus), dtype=np.int64))
        for gpu, slot in zip(gpus, solved[held.tobytes()], strict=True):
            engine, rank = slots[gpus[slot]]
            engines[engine][rank] = gpu
    return tuple(map(tuple, engines[:count]))
