"""Does with numpy what a plan says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hybridflow.weights.reshard.plan import ReshardPlan
from hybridflow.weights.reshard.regions import Region
from tests.unit.weights.reshard.oracles import UNWRITTEN, Array

Trainer = list[dict[tuple[int, str], Array]]
"""Parameters of each trainer rank by (chunk of its virtual pipeline, Megatron name)."""


def view(array: Array, region: Region) -> Array:
    matrix = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(-1, 1)
    return matrix[region.row : region.row + region.rows, region.col : region.col + region.cols]


def parameters_of(plan: ReshardPlan, gpu: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """SGLang name and shape of every parameter of the engine's rank on a GPU."""
    for block in plan.blocks:
        for target in plan.pattern_of(gpu, block.kind).targets:
            yield block.prefix + target.name, target.shape


def fill_engine(plan: ReshardPlan, gpu: int, trainer: Trainer) -> dict[str, Array]:
    """Parameters of the engine rank on a GPU after all copies to it."""
    engine = {name: np.full(shape, UNWRITTEN) for name, shape in parameters_of(plan, gpu)}
    for copy in plan.copies_to(gpu):
        view(engine[copy.parameter], copy.region)[:] = view(trainer[copy.source][copy.chunk, copy.tensor], copy.origin)
    for name, region in plan.padding_of(gpu):
        view(engine[name], region)[:] = 0
    return engine
