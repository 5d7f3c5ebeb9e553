"""Fits each `megatron.core` module to this machine at the moment it is imported.

Doing it right after a module has run, rather than afterwards for all, means that a later module's `from x import f`
already takes the fitted `f`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
from collections.abc import Sequence
from types import ModuleType

import torch

from megatron_ext.platform.patch import Patch

PACKAGE = "megatron.core"


class MegatronImportHook(importlib.abc.MetaPathFinder):
    """Finder that lets the usual one find `megatron.core` modules and fits them once they have been executed."""

    def __init__(self, patches: Sequence[Patch], stand_in: ModuleType) -> None:
        """`patches` for the modules they own; `stand_in` for the `torch` that every module imports."""
        self._patches = patches
        self._stand_in = stand_in

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
            self.fit(module)

        spec.loader.exec_module = execute_and_fit
        return spec

    def fit(self, module: ModuleType) -> None:
        """Replaces the module's global `torch`, where it has one, and applies its patches, where there are any."""
        if module.__dict__.get("torch") is torch:
            module.__dict__["torch"] = self._stand_in
        for patch in self._patches:
            if patch.owner == module.__name__:
                patch(module)
