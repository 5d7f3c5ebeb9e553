"""Has a process find only what a bare GPU machine has and what is carried there, whatever else is installed here.

Allowed are the packages of BARE and CARRIED with all that they require, and this project. Others are not found, as if
they were not installed: what would need one fails, here and not there.
"""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from importlib.machinery import ModuleSpec
from typing import Any

from tests.gpu.carried import CARRIED

BARE = ("torch", "transformers", "triton")
WHERE_THEY_ARE = ("transformer-engine", "apex", "flash-attn", "flash-attn-3", "flash-attn-4")
"""Used if somebody has installed them, and not needed."""
OWN = ("hybridflow",)
NEVER = ("sglang", "ray", "zmq", "pydantic")
"""Whatever is required by what: the checks are of the trainer's side alone."""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def allowed_distributions() -> set[str]:
    """Names of those that are installed, their requirements included."""
    allowed, waiting = set[str](), [*BARE, *CARRIED, *WHERE_THEY_ARE, *OWN]
    while waiting:
        name = _plain(waiting.pop())
        if name in allowed:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        allowed.add(name)
        if name not in map(_plain, OWN):
            waiting += [_name_of(line) for line in required if "extra ==" not in line]
    return allowed


def _name_of(requirement: str) -> str:
    end = next((at for at, character in enumerate(requirement) if character in " ;[(<>=!~"), len(requirement))
    return requirement[:end]


class Guard:
    """Which top-level modules of other distributions are kept away."""

    def __init__(self) -> None:
        allowed = allowed_distributions()
        self.missing = sorted({*BARE, *CARRIED} - allowed)
        self._kept_away = {
            module
            for module, owners in importlib.metadata.packages_distributions().items()
            if not allowed & {_plain(owner) for owner in owners}
        }

    def keeps_away(self, module: str) -> bool:
        return module.partition(".")[0] in self._kept_away

    def install(self) -> None:
        """From here on they are not found."""
        sys.meta_path[:] = [finder if _is_builtin(finder) else _Guarded(finder, self) for finder in sys.meta_path]

    def strangers(self) -> list[str]:
        """Top-level modules that are loaded all the same, and those that no check may need."""
        loaded = {name.partition(".")[0] for name in sys.modules}
        return sorted(name for name in loaded if self.keeps_away(name) or name in NEVER)


@functools.cache
def guard_imports() -> Guard:
    """The guard of this process, installed at the first call; processes that are forked have it too."""
    guard = Guard()
    guard.install()
    return guard


def _is_builtin(finder: Any) -> bool:
    return getattr(finder, "__name__", "") in ("BuiltinImporter", "FrozenImporter")


class _Guarded:
    """A finder that does not find what is kept away."""

    def __init__(self, finder: Any, guard: Guard) -> None:
        self._finder, self._guard = finder, guard

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if self._guard.keeps_away(name) or not hasattr(self._finder, "find_spec"):
            return None
        return self._finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)
