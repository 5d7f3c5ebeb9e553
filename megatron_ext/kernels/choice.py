"""Chooses the library that computes Adam, RMSNorm, the sums of weight gradients and the attention core.

None of them is imported here: what is installed is looked up, so that a driver or a check can ask in a moment.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

KernelChoice = Literal["auto", "torch", "transformer_engine", "apex"]
Library = Literal["torch", "transformer_engine", "apex"]
AttentionBackend = Literal["auto", "sdpa", "varlen", "cudnn", "transformer_engine"]

TITLES: dict[Library, str] = {"torch": "torch", "transformer_engine": "Transformer Engine", "apex": "Apex"}
APEX_EXTENSIONS = ("amp_C", "fused_layer_norm_cuda", "fused_weight_gradient_mlp_cuda")
"""Modules that apex compiles for Adam, RMSNorm and the sums of weight gradients."""
FLASH_PACKAGES = {"FA3": ("flash_attn_interface", None), "FA4": ("flash_attn", "cute")}
"""Package, and part of it, that torch takes each version of FlashAttention from."""


class KernelsError(ValueError):
    """The library asked for is not here. The message gives the key, what is missing and the remedy."""


@dataclass(frozen=True)
class Kernels:
    """The library chosen for each kind of kernel."""

    library: Library
    attention: AttentionBackend
    """`auto` is left where only the worker's GPU can decide; see `attention.cuda.choose_attention`."""

    @property
    def fuses_weight_gradients(self) -> bool:
        """Whether products for weight gradients are added to Megatron's buffer as they are made."""
        return self.library != "torch"

    def describe(self) -> str:
        """One line for the user."""
        title = TITLES[self.library]
        summed = title if self.fuses_weight_gradients else f"{title} (not fused)"
        core = TITLES["transformer_engine" if self.library == "transformer_engine" else "torch"]
        attention = core if self.attention == "auto" else self.attention
        return f"Adam: {title}, RMSNorm: {title}, gradient accumulation: {summed}, attention: {attention}"


def resolve_kernels(choice: KernelChoice, attention: AttentionBackend = "auto", *, on_cuda: bool) -> Kernels:
    """`auto` is torch without CUDA; with it Transformer Engine where it is installed, else Apex, else torch.

    Attention left to `auto` too is torch's `varlen` where FlashAttention 3 or 4 is installed for it, as that is the
    fastest. Raises KernelsError for a library that is named and missing, ValueError for a name that is none.
    """
    if choice not in get_args(KernelChoice):
        raise KernelsError(f"kernels = {choice!r}: it must be one of {', '.join(get_args(KernelChoice))}")
    if choice != "auto":
        obstacle = find_obstacle(choice)
        if obstacle is not None:
            raise KernelsError(f'kernels = "{choice}": {obstacle}, or set kernels = "auto" or "torch"')
        return Kernels(choice, attention)
    if not on_cuda:
        return Kernels("torch", attention)
    if attention == "auto" and installed_flash():
        attention = "varlen"
    candidates: tuple[Library, ...] = ("transformer_engine", "apex", "torch")
    return Kernels(next(name for name in candidates if find_obstacle(name) is None), attention)


def find_obstacle(library: Library) -> str | None:
    """Find what is missing of a library, with the remedy; None where it is installed."""
    if library == "transformer_engine" and not _has_part("transformer_engine", "pytorch"):
        return (
            "Transformer Engine is not installed here. Remedy: pip install 'hybridflow[gpu]', which names the versions "
            "that Megatron-Core takes"
        )
    if library != "apex":
        return None
    build = "build it from https://github.com/NVIDIA/apex with its C++ and CUDA extensions"
    if not _has_part("apex", "optimizers"):
        return f"NVIDIA apex is not installed here (the registry's `apex` is an unrelated project). Remedy: {build}"
    absent = [name for name in APEX_EXTENSIONS if not _has_part(name, None)]
    if absent:
        return f"apex is installed without {', '.join(absent)}. Remedy: {build}"
    return None


def installed_flash() -> list[str]:
    """Versions of FlashAttention that torch could take over, by its names for them."""
    return [name for name, (package, part) in FLASH_PACKAGES.items() if _has_part(package, part)]


def _has_part(package: str, part: str | None) -> bool:
    """Whether a package is installed, with a module or folder `part` in it; nothing of it is run."""
    loaded = sys.modules.get(package)
    if loaded is not None and (part is None or f"{package}.{part}" in sys.modules):
        return True
    spec = importlib.util.find_spec(package) if loaded is None else loaded.__spec__
    if spec is None or part is None:
        return spec is not None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    return any((folder / part).is_dir() or (folder / f"{part}.py").is_file() for folder in folders)
