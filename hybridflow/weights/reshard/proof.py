"""Proves, before anything is copied, that a plan writes every element of every engine once, from the right place.

On rectangles alone: no element is made or looked at, so a 32B model takes milliseconds. What is proven, from the two
descriptions of shards (train_shards.py, rollout_shards.py) and the coordinates of ranks (train_layout.py):

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

from hybridflow.errors import WeightSyncError
from hybridflow.weights.reshard.blocks import has_head
from hybridflow.weights.reshard.pattern import Pattern, Piece
from hybridflow.weights.reshard.plan import ReshardPlan
from hybridflow.weights.reshard.regions import Region, Shard, find_overlap
from hybridflow.weights.reshard.rollout_shards import rollout_shards
from hybridflow.weights.reshard.sources import Supply
from hybridflow.weights.reshard.train_layout import Part, part_of, stage_of
from hybridflow.weights.reshard.train_shards import train_shards


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
