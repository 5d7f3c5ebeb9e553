"""Lets an unmodified Megatron-Core run on a machine without CUDA, over gloo.

Call `install()` in every process before the first `megatron.core` import. Nothing on disk is changed. Three parts:

    torch_stand_in   the `torch` that Megatron modules see: `torch.cuda` answers for a CPU, device="cuda" means "cpu"
    import_hook      hands that stand-in to each `megatron.core` module as it is imported, and applies its patches
    patches          the few symbols that need more than that, each with its reason

With CUDA present `install()` only checks the version: Megatron then runs as its authors wrote it.
"""

from __future__ import annotations

import importlib.metadata
import sys

import torch

from megatron_ext.platform.errors import PlatformError
from megatron_ext.platform.import_hook import MegatronImportHook

__all__ = ["SUPPORTED_MEGATRON_VERSIONS", "PlatformError", "check_version", "install"]

SUPPORTED_MEGATRON_VERSIONS = ("0.16.1",)


def install() -> None:
    """Prepares this process for `import megatron.core`. Calling it again does nothing.

    Raises PlatformError when Megatron-Core is missing or of another version, or, without CUDA, when some
    `megatron.core` module was imported before (it would hold the real torch).
    """
    check_version(_installed_version())
    if torch.cuda.is_available() or any(isinstance(finder, MegatronImportHook) for finder in sys.meta_path):
        return
    early = sorted(name for name in sys.modules if name.startswith("megatron.core"))
    if early:
        raise PlatformError(
            f"{early[0]} was imported before megatron_ext.platform.install(): it already holds the CUDA torch. "
            "Import megatron_ext.platform and call install() first."
        )
    # Megatron calls tensor.cuda() on small tensors it has just made. A build without CUDA can only raise there, so
    # nothing that worked before changes.
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    sys.meta_path.insert(0, MegatronImportHook())


def check_version(version: str) -> None:
    """Raises PlatformError unless `version` is one the patches were written against."""
    if version not in SUPPORTED_MEGATRON_VERSIONS:
        supported = ", ".join(SUPPORTED_MEGATRON_VERSIONS)
        raise PlatformError(f"megatron-core {version} is installed, supported: {supported}. Install one of these.")


def _installed_version() -> str:
    try:
        return importlib.metadata.version("megatron-core")
    except importlib.metadata.PackageNotFoundError as error:
        wanted = SUPPORTED_MEGATRON_VERSIONS[-1]
        raise PlatformError(f"megatron-core is not installed: pip install megatron-core=={wanted}") from error
