"""Patches, changes to upstream code, each of which says what it relies on, why, and when it can go; and their error.

An import hook fits each `megatron.core` module to this machine at the moment it is imported. Doing it right after a
module has run, rather than afterwards for all, means that a later module's `from x import f` already takes the fitted
`f`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch


class PlatformError(ImportError):
    """Megatron-Core cannot be used here: missing, another version, imported too early, or lacking a symbol we patch."""


@dataclass(frozen=True)
class Patch:
    """A change to a module, class or object of upstream, made by calling it with that owner.

    The docstring of `change` says what is different afterwards and why. PlatformError naming the symbol, before
    anything is changed, when one of `symbols` is gone.
    """

    owner: str
    """Dotted name of what is changed."""
    symbols: tuple[str, ...]
    """Names that the owner must have: all that is replaced, and what the replacement relies on. "A.b" is b of A."""
    drop_test: str
    """Test in tests/dist_cpu/test_patches.py that runs upstream without the change, and fails when it can go."""
    change: Callable[[Any], None]

    def __call__(self, owner: Any) -> None:
        for symbol in self.symbols:
            found = owner
            for name in symbol.split("."):
                if not hasattr(found, name):
                    raise self.missing(symbol)
                found = getattr(found, name)
        self.change(owner)

    def missing(self, symbol: str) -> PlatformError:
        """The error that says what upstream has no more."""
        return PlatformError(
            f"{self.owner}.{symbol} does not exist in the installed {self.owner.partition('.')[0]}, but "
            f"megatron_ext patches it ({self.change.__name__}). Install a supported version."
        )


def patch(owner: str, *symbols: str, drop_test: str) -> Callable[[Callable[[Any], None]], Patch]:
    """Makes a function that changes `owner` a `Patch`."""
    return lambda change: Patch(owner, symbols, drop_test, change)


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
