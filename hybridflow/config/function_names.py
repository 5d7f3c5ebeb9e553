"""Names of functions of the user's own in a configuration, "module:function", and of what may stand in their place."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

FILE_NAME = re.compile(r"([\w-]+)\.py(:\w+)?$")
"""A file in place of its module."""
_FUNCTION_NAME = re.compile(r"[A-Za-z_][\w.-]*:[A-Za-z_][\w.]*")


def to_module(name: str) -> str:
    """ "module:function" with what is known of both; a module has no folders in its name: it is found by them."""
    found = FILE_NAME.search(name)
    return f'"{found[1]}{found[2] or ":function"}"' if found else '"module:function"'


def one_of(*names: str) -> Callable[[str], str]:
    """A check that a text is one of `names`, or names a function."""

    def check(name: str) -> str:
        if name in names or (_FUNCTION_NAME.fullmatch(name) and not FILE_NAME.search(name)):
            return name
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        known = f"one of {', '.join(names)}, or " if names else ""
        raise ValueError(
            f"{name!r} is neither a known name nor a function. Remedy: {hint}give {known}{to_module(name)}"
            if names
            else f"{name!r} is no function. Remedy: give {to_module(name)}"
        )

    return check


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _check_once(names: Sequence[str]) -> Sequence[str]:
    labels = [name.rpartition(":")[2] for name in names]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(
            f"{', '.join(names)} has two entries that are told under the name {twice[0]!r}. Remedy: remove one of "
            "them, or rename a function"
        )
    return names


def _check_value(value: Any) -> Any:
    if isinstance(value, bool | int | float | str) and (not isinstance(value, float) or math.isfinite(value)):
        return value
    raise ValueError(
        f"{value!r} is neither a finite number, true or false, nor a text. Remedy: give one of these; of several "
        "values, one key each"
    )


FunctionValue = Annotated[Any, AfterValidator(_check_value)]
"""A value of a parameter of a function."""
Functions = Annotated[
    list[Annotated[str, AfterValidator(one_of())]], BeforeValidator(_as_list), AfterValidator(_check_once)
]
"""Functions of the user's own, of different names; one alone needs no list."""
GroupFilters = Annotated[
    list[Annotated[str, AfterValidator(one_of("same_reward"))]], BeforeValidator(_as_list), AfterValidator(_check_once)
]
