"""Relative paths in a configuration, and the folders in which a "module:function" is looked for.

A path in a .toml file is taken from that file's folder where it exists there, and becomes absolute; else it stays as it
is, from the working folder. In a run's resolved.json it is the other way round: there the run began in the working
folder. What `--set` says is from the working folder. `~` is the user's home.
"""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel

from hybridflow.config.toml_tree import KeyPath, TomlTree, format_key_path
from hybridflow.errors import ConfigError

if TYPE_CHECKING:
    from hybridflow.config.algorithm_section import AlgorithmSection
    from hybridflow.config.curriculum_section import CurriculumSection
    from hybridflow.config.reward_sections import RewardSection

_S = TypeVar("_S", "RewardSection", "AlgorithmSection", "CurriculumSection")


def add_module_folders(section: _S, files: Sequence[Path]) -> _S:
    """The section with the folders of the configuration `files`, last first, and the working folder in
    `module_folders`, as absolute paths behind those that it names; as it is where it names no "module:function".
    """
    if not section.names_module:
        return section
    folders = [*section.module_folders, *(path.parent for path in reversed(files)), Path.cwd()]
    found = dict.fromkeys(str(Path(folder).resolve()) for folder in folders)
    return section.model_copy(update={"module_folders": list(found)})


Words = tuple[str, ...]


@dataclass(frozen=True)
class _IsPath:
    """Marks a field whose text is the path of something that is read, or one of `words`, which are none."""

    words: Words = ()


def _check_path(text: str) -> str:
    """An empty one would be the working folder, or a key that is not set."""
    if not text.strip() or "\0" in text:
        raise ValueError("no path. Remedy: name a file or folder, or leave the key out")
    return os.path.expanduser(text)


AnyPath = Annotated[str, AfterValidator(_check_path)]
InputPath = Annotated[AnyPath, _IsPath()]
"""A file or folder to read."""
StartOrInputPath = Annotated[AnyPath, _IsPath(words=("start",))]
"""A file or folder to read, or "start", which is none."""


def resolve_paths(tree: TomlTree, root: type[BaseModel], files: Sequence[Path], *, must_exist: bool) -> None:
    """Makes the paths of `root` in `tree` ones that hold from the working folder.

    With `must_exist`, raises ConfigError, naming both places, for those set by a file that are in neither, and for
    those of `--set` that are beside a file alone.
    """
    problems: list[str] = []
    for key_path, words in _path_keys(root, (), tree.values):
        table, value = _find(tree.values, key_path)
        if value in words:
            continue
        if isinstance(value, str) and value.startswith("~"):
            value = table[key_path[-1]] = os.path.expanduser(value)
        source = tree.source_of(key_path)
        if source is None or not isinstance(value, str) or not value or Path(value).is_absolute():
            continue
        file = next((file for file in files if str(file) == source), None)
        if file is None:
            problems += _refuse_beside(key_path, value, files) if must_exist else []
            continue
        beside = (file.parent / value).absolute()
        is_here = _exists(Path(value))
        if _exists(beside) and not (is_here and file.suffix.lower() == ".json"):
            table[key_path[-1]] = value if beside == Path(value).absolute() else str(beside)
        elif not is_here and must_exist:
            problems.append(f"{format_key_path(key_path)} = {value!r} [{file}]: {_describe_both(beside, value)}")
    if problems:
        raise ConfigError("\n".join(problems))


def _path_keys(model: type[BaseModel], prefix: KeyPath, values: Any) -> Iterator[tuple[KeyPath, Words]]:
    """Keys of paths below `model`, and words that are none; in a list of sections, of each item that `values` has."""
    for name, field in model.model_fields.items():
        annotation, inner = field.annotation, values.get(name) if isinstance(values, dict) else None
        if _is_section(annotation):
            yield from _path_keys(annotation, (*prefix, name), inner)
        elif get_origin(annotation) is list and _is_section(item := get_args(annotation)[0]):
            for number, one in enumerate(inner if isinstance(inner, list) else []):
                yield from _path_keys(item, (*prefix, name, number), one)
        elif (mark := _find_mark((*field.metadata, annotation))) is not None:
            yield (*prefix, name), mark.words


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _find_mark(parts: tuple[Any, ...]) -> _IsPath | None:
    """The mark on an annotation, or within it: `InputPath | None`."""
    found = (part if isinstance(part, _IsPath) else _find_mark(get_args(part)) for part in parts)
    return next((mark for mark in found if mark is not None), None)


def _find(values: Any, key_path: KeyPath) -> tuple[Any, Any]:
    """The table that holds the key, and its value; None where there is none."""
    for key in key_path[:-1]:
        if isinstance(values, list) and isinstance(key, int):
            values = values[key]
        else:
            values = values.get(key) if isinstance(values, dict) else None
    return values, values.get(key_path[-1]) if isinstance(values, dict) else None


def _refuse_beside(key_path: KeyPath, value: str, files: Sequence[Path]) -> list[str]:
    """The problem of a path of the command line that is not in the working folder, but beside a file."""
    here, key = Path(value).absolute(), format_key_path(key_path)
    beside = next((place for file in files if _exists(place := (file.parent / value).absolute())), None)
    if beside is None or _exists(here):
        return []
    told = f"{key} = {value!r} [--set]: {here} does not exist, and --set is from the working folder"
    return [f"{told}. Remedy: --set {key}={beside}"]


def _exists(path: Path) -> bool:
    return path.exists() or bool(glob.glob(str(path)))


def _describe_both(beside: Path, value: str) -> str:
    here = Path(value).absolute()
    places = f"neither {beside} nor {here} exists" if beside != here else f"{here} does not exist"
    for place in (beside, here):
        names = sorted(entry.name for entry in place.parent.iterdir()) if place.parent.is_dir() else []
        if near := difflib.get_close_matches(place.name, names, n=1, cutoff=0.4):
            return f"{places}. Remedy: check the path; did you mean {place.parent / near[0]}?"
    return f"{places}. Remedy: check the path"
