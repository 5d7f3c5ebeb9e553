"""Names of `sgl_kernel` that SGLang imports at start-up on a CPU. None is called: each needs AMX, which SGLang checks for."""

from typing import NoReturn

__version__ = "0.0.0+names.only"


class _Kernel:
    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{self.__name__} has no CPU build here")


def __getattr__(name: str) -> _Kernel:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Kernel(name)
