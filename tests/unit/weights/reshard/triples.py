"""Random small models with a training and a rollout layout that fit them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hybridflow.errors import ConfigError
from hybridflow.weights.reshard.planner import check_layouts
from hybridflow.weights.reshard.rollout_layout import RolloutLayout
from megatron_ext.hf.config import FAMILIES, Experts, HFConfig
from megatron_ext.parallel.layout import Layout

MAX_WORLD_SIZE = 24


@dataclass(frozen=True)
class Triple:
    config: HFConfig
    train: Layout
    rollout: RolloutLayout
    gpus_per_node: int


def make_triples(seed: int, count: int) -> list[Triple]:
    """Always the same for a seed: the model families in turn. What the checks refuse is drawn again."""
    generator = random.Random(seed)
    families = sorted(FAMILIES)
    triples: list[Triple] = []
    while len(triples) < count:
        triple = _draw(generator, families[len(triples) % len(families)])
        if triple.train.world_size > MAX_WORLD_SIZE:
            continue
        try:
            check_layouts(triple.config, triple.train, triple.rollout, triple.gpus_per_node)
        except ConfigError:
            continue
        triples.append(triple)
    return triples


def _draw(generator: random.Random, model_type: str) -> Triple:
    choose = generator.choice
    tp, cp, dp, pp = choose([1, 2, 3, 4, 6]), choose([1, 1, 2]), choose([1, 1, 2, 3]), choose([1, 2, 3])
    vpp = choose([1, 2]) if pp > 1 else 1
    is_moe = FAMILIES[model_type].has_experts
    train = Layout(
        tp=tp,
        pp=pp,
        dp=dp,
        cp=cp,
        vpp=vpp,
        ep=choose([1, 2, 4]) if is_moe else 1,
        etp=choose([1, 2]) if is_moe else 1,
        sequence_parallel=tp > 1,
        grouped_experts=is_moe and choose([False, True]),
    )
    rollout = RolloutLayout(tp=choose([1, 2, 3, 4, 4, 6, 8, 8]), ep=choose([1, 2, 4]) if is_moe else 1)
    config = draw_config(generator, model_type, num_layers=pp * vpp * choose([1, 2]))
    return Triple(config, train, rollout, choose([1, 2, 4, 8]))


def draw_config(generator: random.Random, model_type: str, num_layers: int) -> HFConfig:
    choose = generator.choice
    family = FAMILIES[model_type]
    num_kv_heads = choose([1, 2, 2, 4, 6, 12])
    moe = None
    if family.has_experts:
        moe = Experts(choose([4, 8]), 2, choose([4, 8, 12]), True, (True,) * num_layers)
    return HFConfig(
        model_type=model_type,
        num_layers=num_layers,
        hidden_size=choose([3, 4, 5]),
        ffn_hidden_size=choose([12, 24]),
        num_heads=num_kv_heads * choose([1, 2, 3, 4]),
        num_kv_heads=num_kv_heads,
        head_dim=choose([1, 2, 3]),
        vocab_size=generator.randrange(5, 200),
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        rope_theta=1e4,
        tied_embeddings=choose([False, True]),
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias,
        moe=moe,
    )
