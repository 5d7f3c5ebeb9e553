"""Folders that are there whole or not at all, and whose every byte can be checked. No torch, no Megatron here.

A folder is written beside its place under the name `<name>.<random>.unfinished`. When all is in it, its manifest is
written, with size and CRC-32 of each file, everything is flushed to the disk, and one rename makes it appear. So a
process killed at any moment leaves what was there before. A folder inside that has a manifest of its own is listed by
that manifest alone: what several processes checked in parts need not be read again by the one that commits the whole.
"""

from __future__ import annotations

import glob
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ext.checkpoint.files import LinkError, read_json, refuse_links

MANIFEST_NAME = "manifest.json"
UNFINISHED = ".unfinished"
REPLACED = ".replaced"
_VERSION = 1
_MOST_LETTERS = 1000
"""Most letters of the path of a file in a checkpoint."""
_READ_BYTES = 8 * 2**20


class BrokenCheckpointError(ValueError):
    """A checkpoint is not what was written. The message names the file, what is wrong with it and the remedy."""


@dataclass(frozen=True)
class FileEntry:
    """Size and checksum that a file must have."""

    num_bytes: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """Files of a folder by path relative to it, and what its writer says about them."""

    files: dict[str, FileEntry]
    description: dict[str, Any]


def begin(target: str | Path) -> Path:
    """An empty folder to write to, beside `target`; what earlier attempts left there is removed.

    Its name is new each time, so that a writer that outlived its killed parent cannot write into it.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    for left_over in target.parent.glob(f"{glob.escape(target.name)}.*{UNFINISHED}"):
        shutil.rmtree(left_over, ignore_errors=True)
    unfinished = target.with_name(f"{target.name}.{secrets.token_hex(4)}{UNFINISHED}")
    unfinished.mkdir()
    return unfinished


def list_files(folder: Path) -> list[str]:
    """Paths relative to `folder` that its manifest must list, in order; of a folder with a manifest only that.

    A link to a folder of the same tree is such a path itself: what it leads to is listed where it is, and links that
    lead back would have no end.
    """
    return _list_below(folder, folder.resolve())


def _list_below(folder: Path, root: Path) -> list[str]:
    found: list[str] = []
    for path in sorted(folder.iterdir()):
        leads_back = path.is_symlink() and path.resolve().is_relative_to(root)
        if path.is_dir() and not leads_back:
            inner = [MANIFEST_NAME] if (path / MANIFEST_NAME).is_file() else _list_below(path, root)
            found += [f"{path.name}/{name}" for name in inner]
        elif path.name != MANIFEST_NAME:
            found.append(path.name)
    return found


def measure_files(folder: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """Size and checksum of these files, which are on the disk when this returns. OSError when the disk refuses."""
    entries: dict[str, FileEntry] = {}
    for name in names:
        path = folder / name
        flush(path)
        entries[name] = FileEntry(path.stat().st_size, _checksum(path))
    return entries


def commit(folder: Path, target: str | Path, *, files: dict[str, FileEntry], description: dict[str, Any]) -> None:
    """Writes the manifest of `folder` and renames it to `target`, in the place of what is there.

    `files` must be `measure_files` of all of `list_files`. OSError when the disk refuses.
    """
    target = Path(target)
    write_manifest(folder, files=files, description=description)
    replaced = target.with_name(target.name + REPLACED)
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
    folder.rename(target)
    flush(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def write_manifest(folder: Path, *, files: dict[str, FileEntry], description: dict[str, Any]) -> None:
    """Makes `folder` one that can be checked, without moving it; the last file to be written into it."""
    content = {
        "version": _VERSION,
        "description": description,
        "files": {name: [entry.num_bytes, entry.crc32] for name, entry in sorted(files.items())},
    }
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(content, indent=1) + "\n")
    for written in (path, *{folder, *((folder / name).parent for name in files)}):
        flush(written)


def list_committed(directory: str | Path) -> list[Path]:
    """Folders in `directory` that were committed, in no order. One that was being replaced is put back first."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    for old in directory.glob(f"*{REPLACED}"):
        place = old.with_name(old.name.removesuffix(REPLACED))
        if not place.exists():
            old.rename(place)
    return [
        path
        for path in directory.iterdir()
        if not path.name.endswith((UNFINISHED, REPLACED)) and (path / MANIFEST_NAME).is_file()
    ]


def keep_last(oldest_first: Sequence[Path], count: int) -> None:
    """Removes all but the last `count` folders. A removal that is cut short leaves no folder that looks whole."""
    for path in oldest_first[: max(0, len(oldest_first) - count)]:
        (path / MANIFEST_NAME).unlink(missing_ok=True)
        shutil.rmtree(path)


def read_manifest(folder: str | Path) -> Manifest:
    """Raises BrokenCheckpointError when there is none, or one that cannot be read."""
    folder = Path(folder)
    path = folder / MANIFEST_NAME
    if not path.is_file():
        what = f"{folder} has no {MANIFEST_NAME}" if folder.is_dir() else f"there is no folder {folder}"
        raise BrokenCheckpointError(f"{what}: it is no checkpoint that was finished; name another one")
    try:
        content = read_json(path)
        version, listed, description = content["version"], content["files"], content["description"]
        files = {_checked(name): FileEntry(int(num_bytes), int(crc32)) for name, (num_bytes, crc32) in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BrokenCheckpointError(f"{path} cannot be read ({error!r}): {_REMEDY}") from error
    if version != _VERSION:
        raise BrokenCheckpointError(
            f"{path} has version {version}, this program reads {_VERSION}: use the one that wrote it"
        )
    return Manifest(files, description)


def _checked(name: str) -> str:
    """The name of a file, if a file can have it; else ValueError."""
    if not name.isprintable() or len(name) > _MOST_LETTERS:
        raise ValueError(f"{name[:40]!a} is no name of a file")
    return name


def check_sizes(folder: str | Path) -> None:
    """Raises BrokenCheckpointError, naming it, for a file that is missing, has another size or was not listed, and for
    a link that leads out of the folder. Reads no file of size.

    Folders inside that have a manifest of their own are checked by it.
    """
    folder = Path(folder)
    try:
        refuse_links(folder)
    except LinkError as error:
        raise BrokenCheckpointError(str(error)) from error
    listed = read_manifest(folder).files
    if foreign := sorted(set(list_files(folder)) - listed.keys()):
        raise BrokenCheckpointError(
            f"{folder / foreign[0]} is not in {folder / MANIFEST_NAME}: it was put there later; remove it"
        )
    for name, entry in listed.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise BrokenCheckpointError(f"{folder / MANIFEST_NAME} names {name!r}, which is outside: {_REMEDY}")
        if not path.is_file():
            raise BrokenCheckpointError(f"{path} is missing: {_REMEDY}")
        if path.stat().st_size != entry.num_bytes:
            raise BrokenCheckpointError(
                f"{path} has {path.stat().st_size} bytes, but {entry.num_bytes} were written: it is truncated or "
                f"overwritten; {_REMEDY}"
            )
        if path.name == MANIFEST_NAME:
            _check_content(path, entry)
            check_sizes(path.parent)


def check_contents(folder: str | Path, *, part: int = 0, num_parts: int = 1) -> None:
    """Raises BrokenCheckpointError, naming it, for a file whose bytes are not those that were written.

    Every `num_parts`-th file is read, from number `part` on, so that several processes can share the work. Folders
    inside with a manifest of their own are left to whoever reads them.
    """
    folder = Path(folder)
    files = sorted(read_manifest(folder).files.items())
    for name, entry in files[part::num_parts]:
        _check_content(folder / name, entry)


_REMEDY = "restore it, or remove this checkpoint and use an earlier one"


def _check_content(path: Path, entry: FileEntry) -> None:
    try:
        found = _checksum(path)
    except OSError as error:
        raise BrokenCheckpointError(f"{path} cannot be read ({error.strerror}): {_REMEDY}") from error
    if found != entry.crc32:
        raise BrokenCheckpointError(
            f"{path} has CRC-32 {found:08x}, but {entry.crc32:08x} was written: its content has changed; {_REMEDY}"
        )


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            value = zlib.crc32(piece, value)
    return value


def flush(path: Path) -> None:
    """Waits until a file's or folder's content is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
