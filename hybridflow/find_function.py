"""Finds a user's function by "module:function": in folders of the run first, then among what is installed.

The folders are those of the configuration files and the working folder. A module found there is loaded from there; the
folder also goes to the end of `sys.path`, so that the module finds its neighbours and hides nothing that is installed.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

from hybridflow.errors import ConfigError

IMPORT_S = 60.0
"""Longest import of a user's module; one that loads torch, on a loaded machine, takes half of it."""


def find_function(where: str, name: str, folders: Sequence[str]) -> Callable[..., object]:
    """The function that `name`, "module:function", means.

    Args:
        where: Key and value of the configuration, for errors.

    Raises:
        ConfigError: the module is not there, fails while it is imported (with file and line), or has no such function.
    """
    module_name, _, path = name.partition(":")
    module = _import(where, module_name, folders)
    found: object = module
    for part in path.split("."):
        if not hasattr(found, part):
            there = [key for key, value in vars(found).items() if callable(value)] if hasattr(found, "__dict__") else []
            near = difflib.get_close_matches(part, there, n=1)
            raise ConfigError(
                f"{where}: AttributeError: {getattr(module, '__file__', None) or module_name} has no {part!r}. Remedy: "
                + (f"did you mean {near[0]!r}?" if near else "name a function that it has")
            )
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{where}: {name!r} is a {type(found).__name__}. Remedy: name a function")
    return found


def source_of(name: str, folders: Sequence[str]) -> Path | None:
    """The file of the module of "module:function", without importing it; None where it is not a file that is there."""
    top, _, rest = name.partition(":")[0].partition(".")
    try:
        spec = _find_in(top, folders) or PathFinder.find_spec(top)
        for part in rest.split(".") if rest else []:
            spec = PathFinder.find_spec(part, spec.submodule_search_locations) if spec else None
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin and Path(spec.origin).is_file() else None


def _import(where: str, name: str, folders: Sequence[str]) -> ModuleType:
    top = name.partition(".")[0]
    spec = _find_in(top, folders)
    loaded = sys.modules.get(top)
    if spec is not None and loaded is not None and not _is_same(loaded, spec):
        raise ConfigError(
            f"{where}: {spec.origin} has the name of a module that is loaded already "
            f"({getattr(loaded, '__file__', None) or 'built in'}). Remedy: rename the file"
        )
    for path in folders:
        if path not in sys.path:
            sys.path.append(path)
    try:
        with limited_in_time(IMPORT_S, "its import"):
            if spec is not None and loaded is None:
                _load(top, spec)
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a module of someone else may raise anything while it is imported
        raise ConfigError(_describe(where, name, folders, error)) from error


def _load(top: str, spec: ModuleSpec) -> None:
    if spec.loader is None:
        return  # a folder without __init__.py
    module = importlib.util.module_from_spec(spec)
    sys.modules[top] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[top]
        raise


@contextmanager
def limited_in_time(limit_s: float, what: str) -> Iterator[None]:
    """TimeoutError in a user's code that takes longer, and again after as long: it may wait for ever, for a server or
    a lock. In the main thread alone, and where no such limit is set already.
    """
    is_free = threading.current_thread() is threading.main_thread() and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    if not is_free:
        yield
        return

    def give_up(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise TimeoutError(f"{what} takes longer than {limit_s:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, limit_s, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _find_in(top: str, folders: Sequence[str]) -> ModuleSpec | None:
    for folder in folders:
        importlib.invalidate_caches()
        spec = PathFinder.find_spec(top, [folder])
        if spec is not None and spec.origin is not None:
            return spec
    return None


def _is_same(module: ModuleType, spec: ModuleSpec) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and spec.origin is not None and Path(file).resolve() == Path(spec.origin).resolve()


def _describe(where: str, name: str, folders: Sequence[str], error: BaseException) -> str:
    told = f"{where}: {name!r} does not load: {type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError) and error.name and (name + ".").startswith(error.name + "."):
        looked = ", ".join(folders) or "no folder of the run"
        near = [path.stem for folder in folders for path in sorted(Path(folder).glob("*.py"))]
        close = difflib.get_close_matches(name, near, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return (
            f"{told}; looked in {looked}, and among the installed packages. Remedy: {hint}put "
            f"{name.replace('.', '/')}.py beside the configuration file or into the working folder, or name a module "
            f"that can be imported on every node"
        )
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith("<") and frame.filename not in _OUR_FILES]
    if isinstance(error, SyntaxError) and error.filename:
        told += f" ({error.filename}, line {error.lineno})"
    elif own:
        told += f" ({own[-1].filename}, line {own[-1].lineno})"
    return f"{told}. Remedy: mend it, so that the module can be imported on every node"


_OUR_FILES = frozenset({__file__, importlib.__file__})
