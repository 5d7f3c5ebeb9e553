"""SGLang's processes on a CPU, forked from one that has imported SGLang.

SGLang spawns a scheduler per rank and a detokenizer, and each imports the same libraries: some 10 and 6 seconds of
a core, and 600 MB each. Forked from a server they start at once and share that memory. The server imports while the
engine's own process does, so an engine is up in two thirds of the time on two cores. On CUDA nothing is forked.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from typing import Any

is_started = False
"""A server of this process was started."""


def start_server() -> None:
    """Starts the server of this process and returns while it imports; it ends with this process.

    It keeps the environment of this moment: what SGLang sets for its children later is for CUDA, and for its metrics.
    """
    global is_started
    multiprocessing.set_forkserver_preload(["hybridflow.rollout.cpu.preloaded"])
    forkserver.ensure_running()
    is_started = True


def fork_from_server(_result: None, server_args: Any) -> None:
    """Hook: SGLang has chosen to spawn; its processes are forked where a server runs and no metrics are asked for."""
    if is_started and not server_args.enable_metrics:
        multiprocessing.set_start_method("forkserver", force=True)
