"""As much of a configuration as is right, so that a wrong key does not hide what else is wrong."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from hybridflow.config.toml_tree import KeyPath

Root = TypeVar("Root", bound=BaseModel)
MAX_ROUNDS = 5


class Partial(NamedTuple):
    """What is left, and what was left out."""

    config: Any
    """A Root, with the default in the place of each value that was left out; None where that does not do."""
    left_out: list[KeyPath]


def read_partly(values: dict[str, Any], root: type[Root], error: ValidationError) -> Partial:
    """The configuration without the keys and values that `error`, of validating it, names."""
    left, left_out = copy.deepcopy(values), list[KeyPath]()
    for _ in range(MAX_ROUNDS):
        dropped = [path for problem in error.errors(include_url=False) if (path := _drop(left, problem["loc"]))]
        if not dropped:
            return Partial(None, left_out)  # a key is missing, or two values do not go together
        left_out += dropped
        try:
            return Partial(root.model_validate(left), left_out)
        except ValidationError as again:
            error = again
    return Partial(None, left_out)


def _drop(values: Any, location: tuple[str | int, ...]) -> KeyPath:
    """Removes the deepest value of `location` that is there in a table; its path, or () where there is none."""
    path: KeyPath = ()
    holder: tuple[dict[str, Any], str, KeyPath] | None = None
    for part in location:
        is_there = (isinstance(values, dict) and part in values) or (
            isinstance(values, list) and isinstance(part, int) and part < len(values)
        )
        if not is_there:
            continue  # the tag of a union's member, or a key that is missing
        path = (*path, part)
        if isinstance(values, dict):
            holder = (values, str(part), path)
        values = values[part]  # type: ignore[index]
    if holder is None:
        return ()
    table, key, path = holder
    del table[key]
    return path
