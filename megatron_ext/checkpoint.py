"""Saves and restores weights, optimizer and random state through Megatron's distributed checkpoints.

Restoring at the same layout continues bit for bit. Weights and optimizer state can be restored at any other layout.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_ext import platform
from megatron_ext.model import PolicyModel
from megatron_ext.topology import Layout, Topology

platform.install()

from megatron.core import dist_checkpointing  # noqa: E402
from megatron.core.dist_checkpointing.mapping import ShardedObject  # noqa: E402
from megatron.core.optimizer import MegatronOptimizer  # noqa: E402

LAYOUT_KEY = "layout"


def save_checkpoint(
    directory: str | Path, model: PolicyModel, optimizer: MegatronOptimizer, topology: Topology, layout: Layout
) -> None:
    """Writes a checkpoint into `directory` (made if missing, should be empty); it is complete when this returns.

    Collective over all ranks. Making the directory's appearance atomic is the caller's business.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    state = _sharded_state(model, optimizer, topology, is_loading=False)
    state["rng"] = _rng_shard(topology)
    metadata = {**_sharding(topology), LAYOUT_KEY: dataclasses.asdict(layout)}
    metadata.pop("dp_cp_group")  # a process group cannot be saved
    dist_checkpointing.save(state, str(directory), content_metadata=metadata)
    dist.barrier()


def load_checkpoint(
    directory: str | Path, model: PolicyModel, optimizer: MegatronOptimizer, topology: Topology, layout: Layout
) -> None:
    """Restores what `save_checkpoint` wrote. Collective over all ranks.

    At another layout the random state stays as it is: it belongs to ranks that no longer exist. Raises Megatron's
    CheckpointingException for a directory that is no checkpoint or lacks something.
    """
    saved = dist_checkpointing.load_content_metadata(str(directory)) or {}
    same_layout = saved.get(LAYOUT_KEY) == dataclasses.asdict(layout)
    state = _sharded_state(model, optimizer, topology, is_loading=True)
    if same_layout:
        state["rng"] = _rng_shard(topology)
    loaded = dist_checkpointing.load(state, str(directory))
    model.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    if same_layout:
        torch.set_rng_state(loaded["rng"]["cpu"])
        if topology.device.type == "cuda":
            torch.cuda.set_rng_state(loaded["rng"]["cuda"])
    dist.barrier()


def _sharded_state(
    model: PolicyModel, optimizer: MegatronOptimizer, topology: Topology, is_loading: bool
) -> dict[str, Any]:
    sharding = _sharding(topology)
    state: dict[str, Any] = {"model": model.sharded_state_dict(metadata=sharding)}
    state["optimizer"] = optimizer.sharded_state_dict(state["model"], is_loading=is_loading, metadata=sharding)
    return state


def _sharding(topology: Topology) -> dict[str, Any]:
    """How Megatron should lay the state out: optimizer state by parameter, so that any layout can read it."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": False,
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": topology.dp_group,
    }


def _rng_shard(topology: Topology) -> ShardedObject:
    """This rank's generators; none of them is shared with another rank."""
    state = {"cpu": torch.get_rng_state()}
    if topology.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    shape = (topology.pp_size, topology.dp_size, topology.tp_size)
    return ShardedObject("rng", state, shape, (topology.pp_rank, topology.dp_rank, topology.tp_rank))
