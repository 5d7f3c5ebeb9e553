"""Finds row files by a path as a user gives it: a file, a folder of them, or a pattern with `*`."""

from __future__ import annotations

import difflib
import glob
import re
from pathlib import Path
from typing import NoReturn

from hybridflow.errors import DataError

PARQUET = ".parquet"
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
PACKED_SUFFIXES = (".gz", ".zst")
"""Compressed forms of JSON; Parquet is compressed inside."""
SUFFIXES = (PARQUET, *JSON_SUFFIXES)
_SPLIT = re.compile(r"(?:.*/)?(train|test|validation|valid|val|dev|eval)(?![A-Za-z])", re.IGNORECASE)
_PATTERN_CHARACTERS = frozenset("*?[")


def find_files(path: str | Path) -> list[Path]:
    """The row files that `path` means, in the order of their names. Raises DataError where there is none."""
    path = Path(path)
    try:
        is_there = path.exists()
    except OSError as error:  # no path of this length, or links in a circle
        raise DataError(f"{str(path)[:200]}: {error.strerror}. Remedy: check the path") from error
    if path.is_dir():
        return _files_of_folder(path)
    if is_there:
        check_suffix(path)
        return [path]
    if _PATTERN_CHARACTERS & set(str(path)):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        files = [file for file in found if file.is_file() and has_known_suffix(file)]
        if not files:
            raise DataError(f"{path}: no row file matches this pattern. Remedy: check it; suffixes are {_list()}")
        return files
    check_suffix(path)
    if path.is_symlink():
        raise DataError(f"{path} is a link to {path.resolve()}, which does not exist. Remedy: put the file there")
    refuse_missing(path)


def has_known_suffix(path: Path) -> bool:
    name = unpacked_name(path)
    return name.endswith(SUFFIXES) and not (name.endswith(PARQUET) and name != path.name.lower())


def unpacked_name(path: Path) -> str:
    """In lower case, without the suffix of a compression."""
    name = path.name.lower()
    return next((name.removesuffix(suffix) for suffix in PACKED_SUFFIXES if name.endswith(suffix)), name)


def check_suffix(path: Path) -> None:
    """Raises DataError for a name that does not say what is in the file."""
    if not has_known_suffix(path):
        convert = "; `hybridflow data convert` makes rows of .csv" if path.name.lower().endswith(".csv") else ""
        raise DataError(f"{path}: unknown suffix {path.suffix!r}. Remedy: use one of {_list()}{convert}")


def _files_of_folder(folder: Path) -> list[Path]:
    """All below it; hidden ones and those that begin with `_` are of the tools that wrote the folder."""
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and has_known_suffix(file)
        and not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
    ]
    if not files:
        raise DataError(f"{folder}: no row file in this folder. Remedy: name one with files {_list()}")
    kinds = {unpacked_name(file).endswith(PARQUET) for file in files}
    if len(kinds) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in files[:6])
        raise DataError(
            f"{folder}: Parquet and JSON files in one folder ({names}), which may be the same rows twice. "
            f"Remedy: give a pattern, such as '{folder / '*.parquet'}'"
        )
    _refuse_overlap(folder, files)
    return files


def _refuse_overlap(folder: Path, files: list[Path]) -> None:
    """One file in two forms is the same rows twice; test rows beside training rows are not to be learnt."""
    names: dict[str, Path] = {}
    for file in files:
        stem = str(file.relative_to(folder).with_name(unpacked_name(file).rpartition(".")[0]))
        if (other := names.setdefault(stem, file)) is not file:
            raise DataError(
                f"{folder}: {other.relative_to(folder)} and {file.relative_to(folder)} may be the same rows twice. "
                f"Remedy: remove one, or give a pattern, such as '{folder / f'*{file.suffix}'}'"
            )
    splits = {found[1].lower(): file for file in files if (found := _SPLIT.match(str(file.relative_to(folder))))}
    if "train" in splits and len(splits) > 1:
        named = ", ".join(str(file.relative_to(folder)) for file in splits.values())
        raise DataError(
            f"{folder}: files of several splits in one folder ({named}). Remedy: give a pattern, such as "
            f"'{folder / 'train*'}'"
        )


def _list() -> str:
    return f"{', '.join(SUFFIXES)}, JSON also with {' or '.join(PACKED_SUFFIXES)}"


def refuse_missing(path: Path) -> NoReturn:
    """Raises DataError that names the file which may be meant."""
    if not path.parent.is_dir():
        raise DataError(f"{path}: no such file, and no folder {path.parent}. Remedy: check the path")
    names = sorted(entry.name for entry in path.parent.iterdir())
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    hint = f"did you mean {path.parent / near[0]}?" if near else f"{path.parent} holds no file of a similar name"
    raise DataError(f"{path}: no such file. Remedy: check the path; {hint}")
