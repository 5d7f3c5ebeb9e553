"""Builds SGLang's own model classes, rank by rank in one process, loads numbers into them and saves every parameter.

    python -m tests.stack_cpu.sglang_shards <folder> ...

Each folder holds config.json, model.safetensors and rollout.json, {"tp": ..., "ep": ...}; parameters go to
<folder>/rank-<rank>.npz. SGLang cuts its parameters
by the rank and the sizes that are published in the process, before any process group is there, so one process can stand
for each rank in turn. It must be started with the environment of the CPU platform.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import load_file
from sglang.srt import runtime_context
from sglang.srt.server_args import ServerArgs
from transformers import AutoConfig

from hybridflow.rollout.cpu import cpu_arguments


def group(rank: int, size: int) -> SimpleNamespace:
    """The answers that a model wants of a process group while it is built."""
    return SimpleNamespace(
        rank_in_group=rank,
        world_size=size,
        is_first_rank=rank == 0,
        is_last_rank=rank == size - 1,
        cpu_group=None,
        device_group=None,
    )


def save_rank(folder: Path, tp: int, ep: int, rank: int) -> None:
    arguments = ServerArgs(
        model_path=str(folder), tp_size=tp, ep_size=ep, skip_tokenizer_init=True, **cpu_arguments("float32")
    )
    runtime_context.reset_context()
    runtime_context.publish(arguments, role="scheduler", ranks=runtime_context.SpawnRanks(world_rank=rank))
    parallel = runtime_context.get_parallel()
    groups = {
        "tp_group": group(parallel.tp_rank, parallel.tp_size),
        "pp_group": group(0, 1),
        "attn_tp_group": group(parallel.attn_tp_rank, parallel.attn_tp_size),
        "attn_cp_group": group(0, 1),
        "moe_tp_group": group(parallel.moe_tp_rank, parallel.moe_tp_size),
        "moe_ep_group": group(parallel.moe_ep_rank, parallel.moe_ep_size),
        "moe_dp_group": group(0, 1),
    }
    config = AutoConfig.from_pretrained(folder)
    model_class = importlib.import_module(f"sglang.srt.models.{config.model_type}").EntryClass
    with parallel.override(**groups):
        model = (model_class[0] if isinstance(model_class, list) else model_class)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(-1)
        model.load_weights(load_file(folder / "model.safetensors").items())
    parameters = {name: parameter.detach().long().numpy() for name, parameter in model.named_parameters()}
    np.savez(folder / f"rank-{rank}.npz", **parameters)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for folder in map(Path, sys.argv[1:]):
        sizes = json.loads((folder / "rollout.json").read_text())
        for number in range(sizes["tp"]):
            save_rank(folder, sizes["tp"], sizes["ep"], number)
