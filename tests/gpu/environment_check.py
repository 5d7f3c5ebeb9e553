"""The environment of the checks: the interpreter, the libraries, the GPU."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from tests.gpu.imports import guard_imports
from tests.gpu.models import GIB
from tests.gpu.report import Report
from tests.gpu.sizes import Sizes

LIBRARIES = (
    "torch",
    "transformers",
    "triton",
    "megatron-core",
    "msgspec",
    "transformer-engine",
    "apex",
    "flash-attn-4",
)


def environment(report: Report, sizes: Sizes) -> None:
    """Versions, the GPU, what `auto` takes; every module of the checks loads with what is carried alone."""
    import megatron_ext.policy  # noqa: F401
    from megatron_ext.kernels.choice import resolve_kernels

    on_cuda = torch.cuda.is_available()
    report.note(python=platform.python_version(), libraries={name: version(name) for name in LIBRARIES})
    report.note(dry_run=sizes.is_dry, kernels=resolve_kernels("auto", on_cuda=on_cuda).describe())
    if on_cuda:
        free, total = torch.cuda.mem_get_info()
        report.note(gpu=torch.cuda.get_device_name(), free_gib=free / GIB, total_gib=total / GIB)
        report.note(cuda=torch.version.cuda, capability=list(torch.cuda.get_device_capability()))
    missing = guard_imports().missing
    report.require(not missing, f"not installed: {', '.join(missing)}; see tests/gpu/run.sh --fetch")


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
