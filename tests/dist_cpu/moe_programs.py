"""What the ranks of a test of mixtures of experts do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_ext.layout import Layout
from megatron_ext.packing import MicroBatch
from megatron_ext.topology import Topology
from tests.dist_cpu.rank_programs import TEMPERATURE, changed_tensors, exported, open_policy, pack_rows, train
from tests.dist_cpu.tiny_models import make_rows


def uneven_batches(topology: Topology, layout: Layout) -> list[MicroBatch]:
    """This data parallel rank's micro-batches: rank 0 has one row, the last has most, so their numbers differ too."""
    rows = make_rows()
    size = topology.dp_size
    cuts = [0, *(1 + number * (len(rows) - 2) // size for number in range(size - 1)), len(rows)]
    return pack_rows(rows[cuts[topology.dp_rank] : cuts[topology.dp_rank + 1]], 2, layout)


def exercise(topology: Topology, layout: Layout, hf_dirs: dict[str, Path], out_dir: Path) -> dict[str, Any]:
    """Per model: what loading changed, log-probabilities of all rows, three steps, weights after, a saved model."""
    results = {}
    for name, hf_dir in hf_dirs.items():
        policy = open_policy(hf_dir, layout, topology)
        changed = changed_tensors(exported(policy), hf_dir)
        logprobs = policy.logprobs(pack_rows(make_rows(), 3, layout), temperature=TEMPERATURE)
        steps = train(policy, uneven_batches(topology, layout), 3)
        policy.save_hf(out_dir / name)
        results[name] = {
            "changed_by_loading": changed,
            "logprobs": logprobs,
            "steps": steps,
            "weights": exported(policy),
        }
    return results
