"""Makes the plan of a reshard from layouts and a model's shape alone.

plan = plan_reshard(hf_config, Layout(tp=4, pp=2), RolloutLayout(tp=4), gpus_per_node=8)
"""

from __future__ import annotations

from hybridflow.errors import ConfigError
from hybridflow.weights.reshard.blocks import model_blocks
from hybridflow.weights.reshard.pattern import build_pattern
from hybridflow.weights.reshard.placement import Engines, place_engines
from hybridflow.weights.reshard.plan import ReshardPlan
from hybridflow.weights.reshard.proof import prove_exact
from hybridflow.weights.reshard.rollout_layout import RolloutLayout, check_rollout_layout
from hybridflow.weights.reshard.rollout_shards import rollout_shards
from hybridflow.weights.reshard.sources import choose_sources, count_held, count_needs
from hybridflow.weights.reshard.train_shards import train_shards
from megatron_ext.hf.config import HFConfig
from megatron_ext.parallel.layout import Layout, LayoutError, check_layout


def plan_reshard(
    hf_config: HFConfig,
    train: Layout,
    rollout: RolloutLayout,
    *,
    gpus_per_node: int = 8,
    engines: Engines | None = None,
    num_engines: int | None = None,
) -> ReshardPlan:
    """The copies, proven exact (proof.py), with the engines placed so that the fewest elements change GPU.

    `engines` are those that run already, where they run; else so many are placed as `num_engines` says, or as there is
    room for. GPUs may be without one. Pure: needs no process, no device and no weights. Raises ConfigError naming the
    key, its value, the rule and a remedy if one of the layouts does not fit the model or they do not fit each other.
    """
    check_layouts(hf_config, train, rollout, gpus_per_node)
    blocks = model_blocks(hf_config, train)
    kinds = sorted({block.kind for block in blocks})
    held = {kind: list(train_shards(kind, hf_config, train)) for kind in kinds}
    patterns = {
        (kind, tp_rank): build_pattern(held[kind], rollout_shards(kind, hf_config, rollout, tp_rank))
        for kind in kinds
        for tp_rank in range(rollout.tp)
    }
    needs = count_needs(blocks, patterns, rollout.tp)
    if engines is None:
        engines = place_engines(count_held(needs, train), gpus_per_node, num_engines)
    sources = choose_sources(needs, train, engines, gpus_per_node)
    plan = ReshardPlan(hf_config, train, rollout, gpus_per_node, blocks, patterns, engines, sources)
    prove_exact(plan)
    return plan


def check_layouts(hf_config: HFConfig, train: Layout, rollout: RolloutLayout, gpus_per_node: int) -> None:
    """Raises ConfigError unless both layouts fit the model and each other."""
    if gpus_per_node < 1:
        raise ConfigError(f"gpus_per_node = {gpus_per_node}: a node has at least 1; give the number of its GPUs")
    try:
        check_layout(train, hf_config)
    except LayoutError as error:
        raise ConfigError(f"train {error}") from error
    check_rollout_layout(hf_config, rollout, train.world_size)
