"""All keys of a configuration, with kind, default, unit and meaning: what `hybridflow config --keys` prints."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ITEM = "N"
"""Stands for the number of an item of a list of tables: `warmup.stages.N.name`."""
_KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}
_UNITS = {
    "_s": "seconds", "_tokens": "tokens", "_gib": "GiB", "_mib": "MiB", "_steps": "steps", "_fraction": "share",
    "_ratio": "share", "_bytes": "bytes", "_chars": "characters",
}  # fmt: skip
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}


@dataclass(frozen=True)
class Key:
    """One key that a file or `--set` may give."""

    path: str
    kind: str
    default: str
    unit: str
    """Empty where it has none."""
    meaning: str
    """One line."""

    def lines(self) -> list[str]:
        unit = f"; unit: {self.unit}" if self.unit else ""
        return [f"{self.path}  ({self.kind}; {self.default}{unit})", f"    {self.meaning}"]


def list_keys(root: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Every key below `root`, in the order of its sections."""
    yield from _list(root, prefix, None)


def _list(model: type[BaseModel], prefix: str, defaults: BaseModel | None) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        path = f"{prefix}.{name}" if prefix else name
        default = field.get_default(call_default_factory=True) if defaults is None else getattr(defaults, name)
        for inner in _sections_in(field.annotation):
            if isinstance(default, inner):
                yield from _list(inner, path, default)
            else:
                yield from _list(inner, f"{path}.{ITEM}" if get_origin(field.annotation) is list else path, None)
        if not _sections_in(field.annotation):
            unit = "" if field.annotation is bool else _unit_of(name)
            yield Key(path, _describe_kind(field), _describe_default(default), unit, _meaning(field))


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _sections_in(argument)]


def _describe_kind(field: FieldInfo) -> str:
    bounds = [
        f"{words} {getattr(mark, name)}"
        for mark in field.metadata
        for name, words in _BOUNDS.items()
        if getattr(mark, name, None) is not None
    ]
    return ", ".join([_name_kind(field.annotation), *bounds])


def _name_kind(annotation: Any) -> str:
    if annotation in _KINDS:
        return _KINDS[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(f'"{choice}"' for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_name_kind(one) for one in arguments if one is not types.NoneType)
    if origin in (list, tuple):
        return f"list of {_name_kind(arguments[0])}"
    if origin is dict:
        return "table"
    if arguments:  # Annotated
        return _name_kind(arguments[0])
    return "any value"


def _describe_default(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if default is None or default in ("", [], {}, ()):
        return "default: empty"
    if isinstance(default, bool):
        return f"default: {str(default).lower()}"
    shown = f'"{default}"' if isinstance(default, str) else str(default)
    return f"default: {shown if len(shown) <= 60 else shown[:57] + '...'}"


def _unit_of(name: str) -> str:
    if name.startswith("price_"):
        return "any currency"
    if name.startswith("num_") or "_per_" in name:
        return name.removeprefix("num_").removeprefix("max_").replace("_", " ")
    return next((unit for suffix, unit in sorted(_UNITS.items(), key=_longest) if f"_{name}".endswith(suffix)), "")


def _longest(item: tuple[str, str]) -> int:
    return -len(item[0])


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())
