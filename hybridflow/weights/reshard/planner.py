"""Plans a reshard from layouts and a model's shape alone, and proves that the plan writes every element once.

    plan = plan_reshard(hf_config, Layout(tp=4, pp=2), RolloutLayout(tp=4), gpus_per_node=8)

The proof is made before anything is copied, on rectangles alone: no element is made or looked at, so a 32B model
takes milliseconds. Proven is, from the two descriptions of shards (train_shards.py, rollout_shards.py) and the
coordinates of ranks (train_layout.py):

1. Each GPU is at most one rank of one engine; the model's blocks have distinct names, on both sides.
2. For each kind of block and rank of an engine: the regions of the pieces and of the padding lie within the parameters,
   do not overlap, and together have as many elements as the parameters. So they cover each element exactly once.
3. Each piece takes from its source the same elements of the same tensor as its region has to hold.
4. Padding lies only where a parameter holds nothing of the model.
5. Each source is in a stage that holds the block, and holds the part.

`plan.copies_to` reads nothing else than what is proven here. That the descriptions themselves are those of Megatron and
SGLang is held by tests against the real parameters.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NoReturn

from hybridflow.errors import ConfigError, WeightSyncError
from hybridflow.weights.reshard.blocks import has_head, model_blocks
from hybridflow.weights.reshard.placement import Engines, place_engines
from hybridflow.weights.reshard.plan import ReshardPlan
from hybridflow.weights.reshard.regions import Region, Shard, find_overlap
from hybridflow.weights.reshard.rollout_layout import RolloutLayout, check_rollout_layout
from hybridflow.weights.reshard.rollout_shards import rollout_shards
from hybridflow.weights.reshard.sources import (
    Pattern,
    Piece,
    Supply,
    build_pattern,
    choose_sources,
    count_held,
    count_needs,
)
from hybridflow.weights.reshard.train_layout import Part, part_of, stage_of
from hybridflow.weights.reshard.train_shards import train_shards
from megatron_ext.hf.config import HFConfig
from megatron_ext.parallel.layout import Layout, LayoutError, check_layout


def prove_exact(plan: ReshardPlan) -> None:
    """Raises WeightSyncError, naming parameter, rank and elements, unless all five statements hold."""
    _prove_names(plan)
    for kind in {block.kind for block in plan.blocks}:
        held = {(part, shard.name): shard for part, shard in train_shards(kind, plan.hf_config, plan.train)}
        for tp_rank in range(plan.rollout.tp):
            needed = rollout_shards(kind, plan.hf_config, plan.rollout, tp_rank)
            _prove_pattern(plan.patterns[kind, tp_rank], needed, held, f"{kind}, engine rank {tp_rank}")
    _prove_sources(plan)


def _prove_names(plan: ReshardPlan) -> None:
    gpus = [gpu for engine in plan.engines for gpu in engine]
    known = len(set(gpus)) == len(gpus) and set(gpus) <= set(range(plan.world_size))
    if not gpus or not known or any(len(engine) != plan.rollout.tp for engine in plan.engines):
        _fail(
            f"engines are on GPUs {plan.engines}",
            f"each has to have {plan.rollout.tp} of the {plan.world_size} GPUs to itself",
        )
    config = plan.hf_config
    names = [block.prefix or block.kind for block in plan.blocks]
    expected = {"embedding", "norm", *(f"model.layers.{layer}." for layer in range(config.num_layers))}
    expected |= {"head"} if has_head(config) else set()
    _prove_distinct(names, "blocks of the engine")
    if set(names) != expected:
        _fail(f"{sorted(set(names) ^ expected)[:3]} are planned or of the model", "they have to be both")
    layers = [block for block in plan.blocks if block.kind.is_layer]
    _prove_distinct((home for block in layers for home in block.homes), "places of layers in the trainer")


def _prove_distinct(values: Iterable[Hashable], what: str) -> None:
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            _fail(f"{what}: {value} comes twice", "each has to come once")
        seen.add(value)


def _prove_pattern(
    pattern: Pattern, needed: tuple[Shard, ...], held: dict[tuple[Part, str], Shard], where: str
) -> None:
    if pattern.targets != needed:
        _fail(f"{where}: the plan fills {[shard.name for shard in pattern.targets]}", "these are not its parameters")
    regions: list[list[Region]] = [[] for _ in needed]
    for piece in pattern.pieces:
        _prove_piece(piece, needed[piece.target], held, where)
        regions[piece.target].append(piece.region)
    for index, region in pattern.padding:
        if any(segment.region.overlap(region) for segment in needed[index].segments):
            _fail(f"{where}: padding {region} of {needed[index].name}", "it has to leave what holds weights alone")
        regions[index].append(region)
    for shard, covered in zip(needed, regions, strict=True):
        _prove_covered(shard, covered, where)


def _prove_covered(shard: Shard, covered: list[Region], where: str) -> None:
    bounds = Region(0, 0, shard.rows, shard.cols)
    outside = [region for region in covered if not bounds.contains(region)]
    if outside:
        _fail(f"{where}: {outside[0]} of {shard.name}", f"it has to lie within {shard.rows} x {shard.cols}")
    twice = find_overlap(covered)
    if twice is not None:
        _fail(f"{where}: {shard.name} gets {twice[0]} and {twice[1]}", "no element may be written twice")
    written = sum(region.size for region in covered)
    if written != shard.size:
        _fail(f"{where}: {written} of {shard.size} elements of {shard.name} are written", "all have to be")


def _prove_piece(piece: Piece, target: Shard, held: dict[tuple[Part, str], Shard], where: str) -> None:
    source = held.get((piece.part, piece.source))
    if source is None:
        _fail(f"{where}: {target.name} from {piece.source} of {piece.part}", "there is no such parameter")
    if (piece.origin.rows, piece.origin.cols) != (piece.region.rows, piece.region.cols):
        _fail(f"{where}: {piece.origin} of {piece.source} to {piece.region} of {target.name}", "sizes have to be equal")
    gives, takes = source.meaning(piece.origin), target.meaning(piece.region)
    if gives is None or gives != takes:
        _fail(f"{where}: {target.name} {piece.region} is {takes}", f"{piece.source} {piece.origin} is {gives}")


def _prove_sources(plan: ReshardPlan) -> None:
    supplies = {
        (tp_rank, Supply(block.stages, part))
        for tp_rank in range(plan.rollout.tp)
        for block in {(block.kind, block.stages): block for block in plan.blocks}.values()
        for part in {piece.part for piece in plan.patterns[block.kind, tp_rank].pieces}
    }
    for tp_rank, supply in supplies:
        for engine in plan.engines:
            rank = plan.sources.get((engine[tp_rank], supply))
            if rank is None or stage_of(plan.train, rank) not in supply.stages:
                _fail(f"GPU {engine[tp_rank]} takes {supply} from rank {rank}", "that rank is not of the stage")
            if part_of(plan.train, rank, supply.part.cut) != supply.part:
                _fail(f"GPU {engine[tp_rank]} takes {supply} from rank {rank}", "that rank holds another part")


def _fail(found: str, rule: str) -> NoReturn:
    raise WeightSyncError(f"the plan for the weights is not exact: {found}; {rule}. This is a bug: please report it")


def plan_reshard(
    hf_config: HFConfig,
    train: Layout,
    rollout: RolloutLayout,
    *,
    gpus_per_node: int = 8,
    engines: Engines | None = None,
    num_engines: int | None = None,
) -> ReshardPlan:
    """The copies, proven exact, with the engines placed so that the fewest elements change GPU.

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
