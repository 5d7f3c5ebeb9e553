"""One function of the user's own: what it is given by the names of its parameters, and where it failed."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from hybridflow.errors import ConfigError
from hybridflow.find_function import find_function

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class OwnFunction:
    """A function with all that it takes beside what each call gives."""

    where: str
    """Key and value of the configuration, for errors."""
    function: Callable[..., object]
    takes: tuple[str, ...]
    """Names of what it is given at each call."""
    settings: Mapping[str, Any]
    """Values of its further parameters, from `[algorithm.parameters]`."""

    def __call__(self, given: Mapping[str, Any]) -> object:
        """Its result. Raises ConfigError, with file and line, for whatever it raises."""
        try:
            return self.function(**{name: given[name] for name in self.takes}, **self.settings)
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:  # sys.exit() of a user's code would end a run without a word
            raise ConfigError(f"{self.where}: it raised {self._locate(error)}. Remedy: {_remedy(error)}") from error

    def refuse(self, came: str, wanted: str) -> NoReturn:
        """Raises ConfigError for a result that is not what it must be."""
        raise ConfigError(f"{self.where}: {came}. Remedy: return {wanted}")

    def _locate(self, error: BaseException) -> str:
        """Type and text of an error, and the line of the user's file in which it arose."""
        file = getattr(inspect.unwrap(self.function), "__code__", None)
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if file and frame.filename == file.co_filename] or frames[1:]
        told = f"{type(error).__name__}: {error}"
        return f"{told} ({own[-1].filename}, line {own[-1].lineno}, in {own[-1].name})" if own else told


def find_own(
    key: str, call: str, offered: Sequence[str], parameters: Mapping[str, Any], folders: Sequence[str]
) -> OwnFunction:
    """The function that `call`, "module:function", means, and how it is to be called.

    Args:
        key: That it is the value of, for errors.
        offered: Names of what a call can give it.
        parameters: `[algorithm.parameters]`; it takes those that it names.
        folders: `algorithm.module_folders`.

    Raises:
        ConfigError: it is not there, does not load, is no plain function, or takes something that nobody gives.
    """
    where = f"{key} = {call!r}"
    function = find_function(where, call, folders)
    if kind := _find_other_kind(function):
        raise ConfigError(f"{where}: it is a {kind}. Remedy: name a plain function (def)")
    takes: list[str] = []
    settings: dict[str, Any] = {}
    for parameter in _parameters_of(where, function):
        name = parameter.name
        if parameter.kind in _VARIADIC or parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            shown = f"*{name}" if parameter.kind in _VARIADIC else f"{name}, by position alone"
            raise ConfigError(
                f"{where}: it takes {shown}: what it is given goes by name. Remedy: name each of its parameters, from "
                f"{', '.join(offered)}, or with a default"
            )
        if name in offered:
            takes.append(name)
        elif name in parameters:
            settings[name] = parameters[name]
        elif parameter.default is inspect.Parameter.empty:
            raise ConfigError(
                f"{where}: it takes {name!r}, which nobody gives. Remedy: take of {', '.join(offered)}; give {name!r} "
                f"a default, or set algorithm.parameters.{name}"
            )
    return OwnFunction(where, function, tuple(takes), settings)


def _parameters_of(where: str, function: Callable[..., object]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}: its parameters cannot be read ({error}). Remedy: wrap it in a plain function (def)"
        ) from error


def _find_other_kind(function: Callable[..., object]) -> str:
    """Tells what it is where calling it gives no value; "" for a function, or an object that is called like one."""
    if inspect.isclass(function):
        return "class"
    called = inspect.unwrap(function)
    while isinstance(called, functools.partial):
        called = called.func
    if inspect.iscoroutinefunction(called):
        return "coroutine (async def)"
    return "generator (yield)" if inspect.isgeneratorfunction(called) else ""


def _remedy(error: BaseException) -> str:
    if isinstance(error, KeyError) and error.args:
        return f"name what it reads among its parameters, e.g. def loss(tokens, {error.args[0]})"
    if isinstance(error, TypeError) and "NoneType" in str(error):
        return "mend it; a reward is None where the verdict is unknown: leave it out of sums, and return None for it"
    return "mend it; hybridflow check-algorithm tries it on made-up values"
