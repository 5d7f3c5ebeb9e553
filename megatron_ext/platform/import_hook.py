"""Fits each `megatron.core` module to the CPU at the moment it is imported.

Doing it right after a module has run, rather than afterwards for all, means that a later module's `from x import f`
already takes the fitted `f`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
from collections.abc import Sequence
from types import ModuleType

import torch

from megatron_ext.platform.patches import PATCHES
from megatron_ext.platform.torch_stand_in import TORCH_STAND_IN

PACKAGE = "megatron.core"


class MegatronImportHook(importlib.abc.MetaPathFinder):
    """Finder that lets the usual one find `megatron.core` modules and fits them once they have been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != PACKAGE and not fullname.startswith(PACKAGE + "."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_fit(module: ModuleType) -> None:
            execute(module)
            fit_module(module)

        spec.loader.exec_module = execute_and_fit
        return spec


def fit_module(module: ModuleType) -> None:
    """Replaces the module's global `torch`, where it has one, and applies its patch, where there is one."""
    if module.__dict__.get("torch") is torch:
        module.__dict__["torch"] = TORCH_STAND_IN
    patch = PATCHES.get(module.__name__)
    if patch is not None:
        patch(module)
