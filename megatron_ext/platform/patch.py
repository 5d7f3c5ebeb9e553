"""Patches, changes to upstream code, each of which says what it relies on, why, and when it can go; and their error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


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
