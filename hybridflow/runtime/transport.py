"""The way in which weights travel: exact shards where they can serve model and layouts, else whole tensors.

These are broadcast to engines that have devices of their own, or go in buckets. Within one node buckets lie in memory
that its processes share (`shared_buckets`). From one node to another they go by Ray's object stores, which need room:
above its size a store writes to disk, or waits for ever. So what cannot fit is refused before anything is loaded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hybridflow.cluster.bundles import Place
from hybridflow.cluster.workers import MAX_UNREAD
from hybridflow.config.sections import Config
from hybridflow.environment import joined_cluster
from hybridflow.errors import ConfigError, PlacementError
from hybridflow.trainer.layout import read_model, to_layout
from hybridflow.weights.reshard.placement import Engines
from hybridflow.weights.reshard.planner import plan_reshard
from hybridflow.weights.reshard.rollout_layout import RolloutLayout, check_cpu_layout
from hybridflow.weights.reshard.schedule import build_schedule
from hybridflow.weights.reshard.settings import ReshardSettings, ranks_per_machine
from hybridflow.weights.reshard.train_layout import ranks_per_stage
from megatron_ext.hf.config import HFConfig
from megatron_ext.hf.mapping import expected_shapes

MIB = 2**20
BEING_LOADED = 3
"""Two buckets that engines load and one in the driver's hand, see `rollout.driver.weight_sync`; copied to each node."""


def largest_bucket(hf_config: HFConfig, element_bytes: int, bucket_bytes: int) -> tuple[int, str]:
    """Bytes of the largest bucket of a model, and the tensor that is larger than `bucket_bytes` alone, or ""."""
    sizes = {name: math.prod(shape) * element_bytes for name, shape in expected_shapes(hf_config).items()}
    name = max(sizes, key=sizes.__getitem__)
    return (sizes[name], name) if sizes[name] > bucket_bytes else (bucket_bytes, "")


def check_object_stores(places: Sequence[Place], senders: Sequence[int], largest: tuple[int, str]) -> None:
    """Raises PlacementError, with sizes and remedy, for a node whose store cannot hold the buckets that are on the way.

    Args:
        places: Of each slot.
        senders: Slots of the train workers that send, one per pipeline stage; each is `MAX_UNREAD` buckets ahead.
        largest: As from `largest_bucket`.
    """
    size, tensor = largest
    sending = Counter(places[slot].node for slot in senders)
    for place in {place.node: place for place in places}.values():
        count = BEING_LOADED + MAX_UNREAD * sending[place.node]
        if count * size > place.store_bytes:
            smaller = "" if tensor else "lower rollout.weight_bucket_mib, "
            cause = f" ({tensor} alone has as much)" if tensor else ""
            raise PlacementError(
                f"weights go from node to node as whole tensors by Ray's object store, in buckets of "
                f"{size / MIB:,.0f} MiB{cause}. Node {place.address} needs room for {count} of them, "
                f"{count * size / MIB:,.0f} MiB, and its store has {place.store_bytes / MIB:,.0f} MiB. Remedy: "
                f"{smaller}start Ray there with --object-store-memory={count * size}, give engines devices of their "
                "own (rollout.own_devices = true), to which weights are broadcast, or run on one node"
            )


ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}
FOREIGN_LAYOUTS = (
    *("quantization", "torchao_config", "modelopt_quant", "rl_quant_profile", "dtype", "json_model_override_args"),
    *("enable_dp_attention", "pp_size", "dp_size", "attn_cp_size", "moe_dp_size", "moe_dense_tp_size"),
    *("enable_dp_lm_head", "moe_runner_backend", "enable_eplb", "ep_num_redundant_experts", "init_expert_location"),
    *("lora_paths", "enable_lora", "model_impl", "speculative_algorithm", "cpu_offload_gb", "weight_cache_mode"),
)
"""Arguments of SGLang under which its ranks may hold other parameters than the planner knows."""


@dataclass(frozen=True)
class Transport:
    """The choice of a run."""

    exact: ReshardSettings | None
    """None: whole tensors under Hugging Face names."""
    reason: str
    """Why this one."""
    broadcasts: bool = False
    """Whole tensors go from device to device, not in buckets by way of Ray."""
    own_slots: Engines = ()
    """Slots of the ranks of engines that share none with train workers."""

    @property
    def name(self) -> str:
        return "exact" if self.exact else "broadcast" if self.broadcasts else "hf_buckets"

    @property
    def placed(self) -> Engines:
        """Slots of the ranks of the engines for which that matters."""
        return self.exact.engines if self.exact else self.own_slots


def num_slots(config: Config) -> int:
    """Slots, and with CUDA GPUs, that a run takes."""
    train, engines = config.train.layout.world_size, config.rollout.num_engines * config.rollout.tp_size
    return train + engines if config.rollout.own_devices else max(train, engines)


def choose_transport(
    config: Config, hf_dir: str | Path, nodes: Sequence[str] | None = None, has_cuda: bool | None = False
) -> Transport:
    """Choose what `rollout.weight_transport` means for this run.

    `nodes` names the node of each slot, None: all are on one; `has_cuda` is what the slots answered, None: they have
    not been asked yet, and what depends on it is left for later.

    Raises ConfigError with the reason where "exact" is asked for and cannot serve the model or the layouts.
    """
    asked = config.rollout.weight_transport
    if config.rollout.own_devices:
        reason = "rollout.own_devices puts engines on devices that no train worker is on"
        return Transport(None, reason, broadcasts=asked != "hf_buckets", own_slots=_slots_behind_trainer(config))
    if asked == "hf_buckets":
        return Transport(None, "rollout.weight_transport says so")
    try:
        settings = exact_settings(config, hf_dir, nodes, has_cuda)
    except ConfigError as error:
        if asked == "exact":
            raise ConfigError(
                f"rollout.weight_transport = 'exact' cannot serve this run: {error}; or set "
                "rollout.weight_transport = 'hf_buckets'"
            ) from error
        return Transport(None, f"exact resharding cannot serve this run: {error}")
    return Transport(settings, "it serves this model and these layouts")


def refuse_small_stores(config: Config, hf_dir: str | Path, places: Sequence[Place]) -> None:
    """For buckets of whole tensors: raises PlacementError where they go from node to node and a node's store is small.

    `places` has the place of each slot.
    """
    if len({place.node for place in places}) == 1:
        return
    layout = to_layout(config.train.layout)
    element_bytes = ELEMENT_BYTES[config.model.dtype]
    largest = largest_bucket(read_model(hf_dir), element_bytes, int(config.rollout.weight_bucket_mib * 2**20))
    check_object_stores(places, range(0, layout.world_size, ranks_per_stage(layout)), largest)


def _slots_behind_trainer(config: Config) -> Engines:
    first, tp = config.train.layout.world_size, config.rollout.tp_size
    return tuple(
        tuple(range(first + engine * tp, first + (engine + 1) * tp)) for engine in range(config.rollout.num_engines)
    )


def exact_settings(
    config: Config, hf_dir: str | Path, nodes: Sequence[str] | None, has_cuda: bool | None
) -> ReshardSettings:
    """Settings of exact resharding, the engines placed where most of their weights are.

    Raises ConfigError, naming the key, if it cannot serve the model or the layouts.
    """
    rollout = config.rollout
    for key in FOREIGN_LAYOUTS:
        if key in rollout.sglang:
            raise ConfigError(
                f"rollout.sglang.{key} = {rollout.sglang[key]!r}: it does not know how SGLang then lays its parameters "
                "out; remove it"
            )
    train = to_layout(config.train.layout)
    layout = RolloutLayout(rollout.tp_size, int(rollout.sglang.get("ep_size", 1)))
    if train.world_size < layout.tp:
        raise ConfigError(
            f"rollout.tp_size = {layout.tp}: it puts each rank of an engine beside a train worker, and train.layout "
            f"has {train.world_size}; choose a smaller tp_size"
        )
    _check_all_beside_train_workers(config, train.world_size, nodes, has_cuda)
    hf_config = read_model(hf_dir)
    per_node = ranks_per_machine(nodes[: train.world_size]) if nodes else train.world_size
    plan = plan_reshard(hf_config, train, layout, gpus_per_node=per_node, num_engines=rollout.num_engines)
    bucket_bytes = int(rollout.weight_bucket_mib * 2**20)
    build_schedule(plan, element_bytes=ELEMENT_BYTES[config.model.dtype], bucket_bytes=bucket_bytes)
    if has_cuda is False:
        check_cpu_layout(hf_config, layout)
    return ReshardSettings(layout, plan.engines, bucket_bytes, per_node, rollout.verify_weights)


def _check_all_beside_train_workers(
    config: Config, world_size: int, nodes: Sequence[str] | None, has_cuda: bool | None
) -> None:
    """Engines beyond the train workers read the shards of another engine: they have to see its memory."""
    room, count = world_size // config.rollout.tp_size, config.rollout.num_engines
    several = len(set(nodes)) > 1 if nodes else joined_cluster() is not None
    if count > room and (several or has_cuda):
        raise ConfigError(
            f"rollout.num_engines = {count}: train.layout has train workers beside {room} of them, and the others "
            "could not read shards on other GPUs or nodes; start fewer engines"
        )
