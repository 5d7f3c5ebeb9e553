"""Runs a function in one process per rank of a layout, joined over gloo on this machine.

Ranks are forked from one server process that has imported Megatron once, so a layout of 8 starts in a fraction of a
second and shares the memory of the libraries. The process groups are made again for each layout.
"""

from __future__ import annotations

import gc
import multiprocessing
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch

from megatron_ext.parallel.layout import Layout
from tests.ports import free_port

TIMEOUT_S = 120.0

multiprocessing.set_forkserver_preload(["tests.dist_cpu.rank_programs"])


def start_server() -> None:
    """Has the server of ranks import its libraries now, beside this process; else the first ranks wait for it."""
    forkserver.ensure_running()


def run_ranks(layout: Layout, program: Callable[..., Any], *args: Any) -> list[Any]:
    """The results of `program(topology, layout, *args)` on each rank, in rank order, from fresh processes.

    `program` must be importable; results travel through torch.save. A failing rank's exception is raised here.
    """
    with tempfile.TemporaryDirectory() as result_dir:
        context = (program, layout, free_port(), result_dir, args)
        torch.multiprocessing.start_processes(_rank_main, context, nprocs=layout.world_size, start_method="forkserver")
        paths = [Path(result_dir, f"{rank}.pt") for rank in range(layout.world_size)]
        return [torch.load(path, weights_only=False) for path in paths]


def _rank_main(
    rank: int, program: Callable[..., Any], layout: Layout, port: int, result_dir: str, args: tuple[Any, ...]
) -> None:
    start_rank()
    from megatron_ext.parallel.topology import init_distributed, shutdown_distributed  # seconds, and only ranks need it

    topology = init_distributed(rank, layout.world_size, "127.0.0.1", port, layout, seed=7, timeout_s=TIMEOUT_S)
    torch.save(program(topology, layout, *args), Path(result_dir, f"{rank}.pt"))
    shutdown_distributed()


def start_rank() -> None:
    """One thread, and a garbage collector that leaves alone what the libraries made before the fork.

    Megatron collects garbage twice at each save and load: 0.25 s each time to look through all objects of torch and
    transformers, and a copy of every page that holds one.
    """
    torch.set_num_threads(1)
    gc.freeze()
