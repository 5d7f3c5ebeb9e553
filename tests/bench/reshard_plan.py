"""CPU seconds to plan a reshard and bytes that it moves, against gathering everything; prints one JSON line per layout.

    python tests/bench/reshard_plan.py
    python tests/bench/reshard_plan.py --model Qwen3-235B-A22B --layouts tp=4,pp=8,dp=8,ep=8:tp=8,ep=8

Planning, proof, rounds and traffic are in the time; reading the config and importing libraries are not. Nothing is
moved.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

from hybridflow.weights.reshard.report import compute_report
from hybridflow.weights.reshard.rollout_layout import RolloutLayout
from megatron_ext.hf.config import read_hf_config
from megatron_ext.parallel.layout import Layout

MODEL = Path(__file__).parents[2] / "configs/models/r1-distill-qwen-32b"
LAYOUTS = ["tp=4,pp=2:tp=4", "tp=8,pp=2:tp=8", "tp=8,pp=4:tp=4", "tp=4,pp=4:tp=8", "tp=4,pp=1:tp=4"]


def sizes(text: str) -> dict[str, int]:
    return {key: int(value) for key, value in (item.split("=") for item in text.split(","))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument(
        "--layouts", nargs="+", default=LAYOUTS, help="train:rollout, as `hybridflow reshard` takes them"
    )
    parser.add_argument("--gpus-per-node", type=int, default=8)
    options = parser.parse_args()
    hf_config = read_hf_config(options.model)
    for layout in options.layouts:
        train, rollout = map(sizes, layout.split(":"))
        report = compute_report(
            hf_config,
            dataclasses.replace(Layout(sequence_parallel=train.get("tp", 1) > 1), **train),
            RolloutLayout(**rollout),
            gpus_per_node=options.gpus_per_node,
            element_bytes=2,
            bucket_bytes=512 * 2**20,
        )
        moved, network = (max(getattr(rank, key) for rank in report.ranks) for key in ("moved_bytes", "network_bytes"))
        gathered = max(rank.moved_bytes for rank in report.gather_everything)
        result = {
            "layouts": layout,
            "gpus": len(report.ranks),
            "plan_cpu_s": round(report.plan_seconds, 4),
            "moved_gb": round(moved / 1e9, 3),
            "network_gb": round(network / 1e9, 3),
            "gather_gb": round(gathered / 1e9, 3),
            "gather_network_gb": round(max(rank.network_bytes for rank in report.gather_everything) / 1e9, 3),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
