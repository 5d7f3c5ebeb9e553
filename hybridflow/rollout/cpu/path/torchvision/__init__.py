"""Names of torchvision, for the modules of SGLang's vision models: imported at start-up, never used by a text model."""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

__version__ = "0.0.0+names.only"


class _Name:
    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __getattr__(self, name: str) -> "_Name":
        return _attribute(self.__name__, name)

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"{self.__name__}: torchvision is not part of the CPU installation")


class _Module(ModuleType):
    def __getattr__(self, name: str) -> _Name:
        return _attribute(self.__name__, name)


class _SubmoduleFinder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.startswith("torchvision.") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: every name is made when it is asked for."""


def _attribute(owner: str, name: str) -> _Name:
    if name.startswith("__"):
        raise AttributeError(f"{owner} has no attribute {name}")
    return _Name(f"{owner}.{name}")


def __getattr__(name: str) -> _Name:
    return _attribute("torchvision", name)


sys.meta_path.insert(0, _SubmoduleFinder())
