"""Free memory of the device that this process computes on. With CUDA: untested."""

from __future__ import annotations

import socket

import psutil
import torch


def device_name() -> str:
    """The GPU of this process with its machine; on a CPU the machine."""
    if torch.cuda.is_available():
        return f"{socket.gethostname()} GPU {torch.cuda.current_device()}"
    return socket.gethostname()


def free_bytes() -> int:
    """What a process of this machine can still take: of the GPU, or of the machine's memory without swapping."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available
