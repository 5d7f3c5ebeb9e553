"""Finds out, before any is loaded, whether a tensor in a checkpoint would ask for more than a tensor needs.

torch's restricted reader refuses such an entry itself, but only when it comes to it: others are loaded by then, and
what a command does not load is never looked at. An entry is an archive by `torch.save`; of it only the small pickle is
read, and of that only the names that it asks for.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING
from typing import BinaryIO

from torch._weights_only_unpickler import _get_allowed_globals

_PICKLE = ".pkl"
_MOST_BYTES = 2**16
"""Most bytes of the pickle: a tensor has some 200."""


def foreign_names(file: BinaryIO, offset: int, length: int) -> list[str]:
    """Classes and functions beyond torch's list that the entry at this place asks for.

    Raises ValueError for what is no tensor that `torch.save` wrote.
    """
    asked = [name for content in _pickles(file, offset, length) for name in _names(content)]
    return [_modern(name) for name in asked if name not in _get_allowed_globals()]


class _Part(io.RawIOBase):
    """So many bytes of a file as a file."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._place = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        if start + offset < 0:
            raise OSError("a place before the beginning")
        self._place = start + offset
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = max(0, min(len(buffer), self._length - self._place))
        self._file.seek(self._offset + self._place)
        content = self._file.read(size)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)


def _pickles(file: BinaryIO, offset: int, length: int) -> list[bytes]:
    """All, as an archive may have several of one name."""
    try:
        with zipfile.ZipFile(_Part(file, offset, length)) as archive:
            found = [info for info in archive.infolist() if info.filename.endswith(_PICKLE)]
            if not found or any(info.file_size > _MOST_BYTES or info.compress_type for info in found):
                raise ValueError("no small pickle in it")
            return [archive.read(info) for info in found]
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise ValueError(str(error)) from error


def _names(content: bytes) -> list[str]:
    names = []
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("GLOBAL", "INST"):
            names.append(str(argument).replace(" ", "."))
        elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            raise ValueError(f"{opcode.name}, which torch.save does not write")
    return names


def _modern(name: str) -> str:
    """torch pickles by the names of Python 2."""
    module, _, rest = name.rpartition(".")
    return ".".join(filter(None, (IMPORT_MAPPING.get(module, module), rest)))
