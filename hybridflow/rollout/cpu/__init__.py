"""Stand-ins that unmodified SGLang needs to run on a CPU without its CPU kernels.

`path/` is put in front of PYTHONPATH for the rollout actor alone; SGLang's spawned processes inherit it. It holds three
packages. `sgl_kernel`, whose CPU build needs AMX, and `torchvision`, whose published wheel needs CUDA, are names alone:
SGLang imports both at start-up and calls one function of them on this path, which is there; any other call would raise
and say so. `torch_memory_saver` does on a CPU what that library does with CUDA. `engine/plugin.py` makes SGLang honour
per-request seeds and fork its processes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

IMPORT_PATH = Path(__file__).parent / "path"


def cpu_environment(num_threads: int, num_ranks: int = 1, index: int = 0) -> dict[str, str]:
    """Environment of the actor process that starts engine `index` on a CPU; must be set before Python starts there."""
    inherited = os.environ.get("PYTHONPATH")
    cores = {"SGLANG_CPU_OMP_THREADS_BIND": core_lists(num_threads, num_ranks, index)} if num_ranks > 1 else {}
    return cores | {
        "PYTHONPATH": os.pathsep.join([str(IMPORT_PATH), *([inherited] if inherited else [])]),
        "SGLANG_USE_CPU_ENGINE": "1",
        "OMP_NUM_THREADS": str(num_threads),
        # The seeded sampler is a torch.compile function; on CPU that would ask for a C++ compiler at run time.
        "TORCHDYNAMO_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }


def core_lists(num_threads: int, num_ranks: int, index: int) -> str:
    """Cores of each rank of engine `index`, as SGLang reads them: "0,1|2,3" for two ranks of two threads.

    SGLang wants them named for tensor parallel ranks on one NUMA node. Engines and ranks follow one another over the
    cores that this process may use, and share them where there are too few.
    """
    usable = sorted(os.sched_getaffinity(0))
    first = index * num_ranks * num_threads
    ranks = [range(first + rank * num_threads, first + (rank + 1) * num_threads) for rank in range(num_ranks)]
    return "|".join(",".join(sorted({str(usable[core % len(usable)]) for core in rank})) for rank in ranks)


def cpu_arguments(dtype: str) -> dict[str, Any]:
    """SGLang ServerArgs for a CPU: torch-native attention and sampling, and the schedule that is faster there.

    A scheduler without requests sleeps until one comes. By default it polls without a pause, which on a CPU takes a
    core from those who train and publish meanwhile.
    """
    return {
        "device": "cpu",
        "attention_backend": "torch_native",
        "sampling_backend": "pytorch",
        "dtype": dtype,
        "mem_fraction_static": 0.3,
        "disable_overlap_schedule": True,
        "sleep_on_idle": True,
    }
