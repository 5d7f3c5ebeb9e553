"""Programs of the tests of resharding."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from hybridflow.weights.reshard.buffers import map_buffer
from hybridflow.weights.reshard.executor import ReshardExecutor
from hybridflow.weights.reshard.planner import plan_reshard
from hybridflow.weights.reshard.report import compute_traffic
from hybridflow.weights.reshard.rollout_layout import RolloutLayout
from hybridflow.weights.reshard.schedule import build_schedule
from hybridflow.weights.reshard.shard_bucket import ShardBucket, check_engines_alike, read_bucket
from megatron_ext.parallel.layout import Layout
from megatron_ext.parallel.topology import Topology
from megatron_ext.policy import MegatronPolicy


class Target(NamedTuple):
    """An engine layout, and how far apart the ranks are taken to be: 1 rank per node makes all pieces messages."""

    tp: int
    ep: int = 1
    gpus_per_node: int = 8


def reshard(
    topology: Topology, layout: Layout, hf_dir: Path, targets: list[Target], bucket_bytes: int
) -> dict[str, Any]:
    """Changed weights of this rank's model, whole under HF names; for each target what its engine rank was handed."""
    policy = MegatronPolicy(str(hf_dir), layout, topology, dtype=torch.float32, optimizer=None)
    change_weights(policy, topology)
    hf = {name: tensor.detach().clone() for name, tensor in policy.export_tensors()}
    return {
        "hf": hf,
        "targets": [run_target(policy, layout, topology.rank, target, bucket_bytes) for target in targets],
    }


@torch.no_grad()
def change_weights(policy: MegatronPolicy, topology: Topology) -> None:
    """Other weights than those on the disk, equal on all replicas. Padding of the vocabulary becomes not-a-number."""
    for (_, name), parameter in policy.local_parameters().items():
        wave = torch.sin(torch.arange(parameter.numel()) * 0.7).view_as(parameter)
        parameter.mul_(1 + 0.3 * wave)
        if "word_embeddings" in name or name.startswith("output_layer"):
            parameter[max(0, policy.hf_config.vocab_size - topology.tp_rank * len(parameter)) :] = torch.nan


def run_target(policy: MegatronPolicy, layout: Layout, rank: int, target: Target, bucket_bytes: int) -> dict[str, Any]:
    rollout = RolloutLayout(target.tp, target.ep)
    plan = plan_reshard(policy.hf_config, layout, rollout, gpus_per_node=target.gpus_per_node)
    schedule = build_schedule(plan, element_bytes=4, bucket_bytes=bucket_bytes)
    executor = ReshardExecutor(schedule, rank, torch.float32)
    shard: dict[str, torch.Tensor] = {}
    for number in range(executor.num_rounds):
        bucket = executor.assemble(number, 3, policy.local_parameters())
        assert bucket is not None and bucket.version == 3
        shard |= {name: tensor.clone() for name, tensor in read_bucket(bucket, map_buffer(bucket.handle))}
        check_alike(bucket, plan.world_size, rollout.tp)
    dist.barrier()
    executor.close()
    return {
        "shard": shard,
        "tp_rank": plan.tp_rank_of[rank],
        "num_rounds": executor.num_rounds,
        "sent_bytes": {str(link): count for link, count in executor.sent_bytes.items()},
        "traffic": compute_traffic(plan, schedule)[rank],
    }


def check_alike(bucket: ShardBucket, world_size: int, tp: int) -> None:
    buckets: list[Any] = [None] * world_size
    dist.all_gather_object(buckets, bucket)
    check_engines_alike([[b for b in buckets if b.engine == engine] for engine in range(world_size // tp)])
