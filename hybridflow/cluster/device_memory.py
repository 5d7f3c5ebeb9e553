"""Free memory of the device that a process computes on. With CUDA: untested."""

from __future__ import annotations

import socket

import psutil
import torch


def device_name(device: torch.device) -> str:
    """A GPU of this process with its machine; of a CPU the machine."""
    return f"{socket.gethostname()} GPU {device.index}" if device.type == "cuda" else socket.gethostname()


def free_bytes(device: torch.device) -> int:
    """Bytes that a process of this machine can still take of the GPU, or of the machine's memory without swapping."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
