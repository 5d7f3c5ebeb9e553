"""Layout of a model in Megatron: the coordinates of a rank, and the stage that holds a layer.

Ranks are counted tp fastest, then cp, dp, pp; for experts, within a stage, etp fastest, then ep, then their replicas
(Megatron-Core 0.16.1, `parallel_state.RankGenerator`, order "tp-cp-ep-dp-pp").
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from megatron_ext.parallel.layout import Layout

Cut = Literal["tensor", "expert", "whole"]
"""Over which ranks of a stage a tensor is spread: tensor parallel, expert (tensor) parallel, or over none."""


class Part(NamedTuple):
    """The part that one group of equal ranks of a stage holds of the tensors with the same cut."""

    cut: Cut
    number: int
    """Tensor parallel rank, or expert parallel rank x etp + expert tensor parallel rank, or 0."""


class LayerPlace(NamedTuple):
    """Place of a layer of the model."""

    stage: int
    chunk: int
    """Chunk of a virtual pipeline; 0 without one."""
    layer: int
    """Counted within the chunk."""


def num_parts(layout: Layout, cut: Cut) -> int:
    return {"tensor": layout.tp, "expert": layout.ep * layout.etp, "whole": 1}[cut]


def ranks_per_stage(layout: Layout) -> int:
    return layout.world_size // layout.pp


def stage_of(layout: Layout, rank: int) -> int:
    return rank // ranks_per_stage(layout)


def part_of(layout: Layout, rank: int, cut: Cut) -> Part:
    """The part that `rank` holds of its stage."""
    return Part(cut, rank % ranks_per_stage(layout) % num_parts(layout, cut))


def holders(layout: Layout, stages: tuple[int, ...], part: Part) -> list[int]:
    """All ranks of `stages` that hold `part`: data and context parallel replicas, in rank order."""
    per_stage, step = ranks_per_stage(layout), num_parts(layout, part.cut)
    return [rank for stage in stages for rank in range(stage * per_stage + part.number, (stage + 1) * per_stage, step)]


def place_layer(layout: Layout, num_layers: int, layer: int) -> LayerPlace:
    """Layers go to the stages in equal runs; in a virtual pipeline, round and round in runs of a chunk's length."""
    per_chunk = num_layers // (layout.pp * layout.vpp)
    run, within = divmod(layer, per_chunk)
    chunk, stage = divmod(run, layout.pp)
    return LayerPlace(stage, chunk, within)
