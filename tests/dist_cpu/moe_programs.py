"""Programs of the tests of mixtures of experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_ext.packing.micro_batch import MicroBatch
from megatron_ext.parallel.layout import Layout
from megatron_ext.parallel.topology import Topology
from tests.dist_cpu.rank_programs import (
    TEMPERATURE,
    changed_tensors,
    copy_weights,
    equal_bits,
    exchange_reference,
    exported,
    fresh_step,
    open_policy,
    pack_rows,
    rank_state,
    sequence_mean,
    train,
)
from tests.dist_cpu.tiny_models import make_rows


def uneven_batches(topology: Topology, layout: Layout, rows_per_micro_batch: int = 2) -> list[MicroBatch]:
    """This data parallel rank's micro-batches: rank 0 has one row, the last has most, so their numbers differ too."""
    rows = make_rows()
    size = topology.dp_size
    cuts = [0, *(1 + number * (len(rows) - 2) // size for number in range(size - 1)), len(rows)]
    return pack_rows(rows[cuts[topology.dp_rank] : cuts[topology.dp_rank + 1]], rows_per_micro_batch, layout)


def exercise(topology: Topology, layout: Layout, hf_dirs: dict[str, Path], out_dir: Path) -> dict[str, Any]:
    """Per model: what loading changed, log-probabilities of all rows, two steps, weights after, a saved model.

    And a supervised step on fewer, longer packs.
    """
    results = {}
    for name, hf_dir in hf_dirs.items():
        policy = open_policy(hf_dir, layout, topology)
        at_start = copy_weights(policy)
        changed = changed_tensors(exported(policy), hf_dir)
        logprobs = policy.logprobs(pack_rows(make_rows(), 3, layout), temperature=TEMPERATURE)
        policy.keep_reference()
        steps = train(policy, uneven_batches(topology, layout), 2)
        policy.save_hf(out_dir / name)
        packed = pack_rows(make_rows(), 3, layout)
        results[name] = {
            "reference": exchange_reference(policy, packed, out_dir / f"{name}_reference"),
            "changed_by_loading": changed,
            "logprobs": logprobs,
            "steps": steps,
            "weights": exported(policy),
            "sft": fresh_step(
                policy,
                at_start,
                uneven_batches(topology, layout, rows_per_micro_batch=4),
                sequence_mean(),
            ),
        }
    return results


def save_halfway(topology: Topology, layout: Layout, hf_dir: Path, out_dir: Path) -> dict[str, Any]:
    """Four steps with a checkpoint after the second, and the same policy again after loading it."""
    policy = open_policy(hf_dir, layout, topology)
    batches = uneven_batches(topology, layout)
    train(policy, batches, 2)
    policy.save_checkpoint(out_dir)
    steps, state = train(policy, batches, 2), rank_state(policy)
    policy.load_checkpoint(out_dir)
    return {"steps": steps, "again": train(policy, batches, 2), "same_state": equal_bits(state, rank_state(policy))}


def go_on(topology: Topology, layout: Layout, hf_dir: Path, checkpoints: list[Path]) -> list[list[Any]]:
    """Two more steps from each checkpoint."""
    results = []
    for checkpoint in checkpoints:
        policy = open_policy(hf_dir, layout, topology)
        policy.load_checkpoint(checkpoint)
        results.append(train(policy, uneven_batches(topology, layout), 2))
    return results


def train_bf16(topology: Topology, layout: Layout, hf_dir: Path) -> dict[str, Any]:
    """Two steps in bfloat16, and the dtype of the routers' probabilities."""
    policy = open_policy(hf_dir, layout, topology, dtype=torch.bfloat16)
    dtypes = set()
    for layer in policy.model.decoder.layers:
        layer.mlp.router.register_forward_hook(lambda module, inputs, output: dtypes.add(output[0].dtype))
    return {"steps": train(policy, uneven_batches(topology, layout), 2), "router_dtypes": dtypes}
