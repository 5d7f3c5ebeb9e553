"""Lets an unmodified Megatron-Core run on a machine without CUDA, over gloo.

Call `install()` in every process before the first `megatron.core` import. Nothing on disk is changed. Four parts:

    torch_stand_in   the `torch` that Megatron modules see: `torch.cuda` answers for a CPU, device="cuda" means "cpu"
    patch            the import hook, which hands that stand-in to each `megatron.core` module as it is imported and
                     applies its patches; what a patch says of itself: symbols, reason, and when it can go
    patches          the few symbols that need more than the stand-in
    device           whether there is CUDA

With CUDA and Transformer Engine `install()` only checks the version: Megatron then runs as its authors wrote it. With
CUDA alone it adds the one name that Megatron leaves out without Transformer Engine.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys

import torch

from megatron_ext.platform.device import find_device
from megatron_ext.platform.patch import MegatronImportHook, Patch, PlatformError
from megatron_ext.platform.patches import WITHOUT_CUDA, WITHOUT_TRANSFORMER_ENGINE
from megatron_ext.platform.torch_stand_in import TORCH_STAND_IN

__all__ = ["SUPPORTED_MEGATRON_VERSIONS", "PlatformError", "check_version", "install"]

SUPPORTED_MEGATRON_VERSIONS = ("0.16.1",)


def install() -> None:
    """Prepares this process for `import megatron.core`. Calling it again does nothing.

    Raises PlatformError when Megatron-Core is missing or of another version, or when some `megatron.core` module was
    imported before that would have been fitted; a later import raises it when a patched symbol is gone.
    """
    check_version(_installed_version())
    patches = _needed_patches()
    if not patches or any(isinstance(finder, MegatronImportHook) for finder in sys.meta_path):
        return
    early = sorted(name for name in sys.modules if name.startswith("megatron.core"))
    if early:
        raise PlatformError(
            f"{early[0]} was imported before megatron_ext.platform.install(): it is not fitted to this machine. "
            "Import megatron_ext.platform and call install() first."
        )
    for patch in patches:
        if patch.owner == "torch":
            patch(torch)
    sys.meta_path.insert(0, MegatronImportHook(patches, torch if find_device().has_cuda else TORCH_STAND_IN))


def _needed_patches() -> list[Patch]:
    """Patches that make up for what this machine has not."""
    patches: list[Patch] = []
    if not find_device().has_cuda:
        patches += WITHOUT_CUDA
    if importlib.util.find_spec("transformer_engine") is None:
        patches += WITHOUT_TRANSFORMER_ENGINE
    return patches


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
