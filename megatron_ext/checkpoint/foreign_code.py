"""Reads pickles of checkpoints that may come from anybody, and refuses what a checkpoint does not need.

Tensors: looked at before any is loaded. torch's restricted reader refuses an entry that asks for more itself, but only
when it comes to it: others are loaded by then, and what a command does not load is never looked at. An entry is an
archive by `torch.save`; of it only the small pickle is read, and of that only the names that it asks for.

`.metadata`: unpickled into data classes of torch and Megatron, and no more. A list of classes is not enough. A pickle
may also set attributes of the classes themselves, and of eighty bytes make a key that takes hours to hash (a tuple of
twice the same tuple, forty times over) or ask for gigabytes. So values are set on instances alone, keys and arguments
are flat, and what Megatron's own files never use is refused. Pure Python, as its opcodes can be looked at one by one:
0.5 us each, of which a file has some 100 per tensor and rank.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING
from typing import Any, BinaryIO, ClassVar

import torch
from torch._weights_only_unpickler import _get_allowed_globals
from torch.distributed.checkpoint.metadata import MetadataIndex

_DCP = "torch.distributed.checkpoint"
_MEGATRON = "megatron.core.dist_checkpointing.strategies.torch"
METADATA_CLASSES = frozenset(
    {
        *((f"{_DCP}.metadata", name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
        *((f"{_DCP}.metadata", f"{kind}StorageMetadata") for kind in ("Bytes", "Chunk", "Tensor")),
        (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"),
        *((f"{_DCP}.filesystem", name) for name in ("_StorageInfo", "_StoragePrefix")),
        *((f"{_DCP}.planner", name) for name in ("SavePlan", "WriteItem", "WriteItemType")),
        *((f"{_DCP}.planner", name) for name in ("TensorWriteData", "BytesIOWriteData")),
        *((_MEGATRON, name) for name in ("MCoreMetadata", "MCoreSavePlan")),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        *(("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
    }
)
"""All that `.metadata` may ask for: data classes, enumerations and constants; none of them does anything."""
_REFUSED = (
    *(pickle.DUP, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID, pickle.BINPERSID, pickle.NEWOBJ_EX),
    *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.DICT),
    *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)


class ForeignClassError(pickle.UnpicklingError):
    """The text is the name of the class."""


def unpickle_metadata(content: bytes) -> Any:
    """The object. Raises ForeignClassError for a class beyond the list, and anything for what is malformed."""
    return _Unpickler(io.BytesIO(content)).load()


_PurePython: Any = pickle._Unpickler  # pyright: ignore[reportAttributeAccessIssue]


class _Unpickler(_PurePython):
    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = {
        code: function for code, function in _PurePython.dispatch.items() if bytes([code]) not in _REFUSED
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in METADATA_CLASSES:
            raise ForeignClassError(f"{module}.{name}")
        return super().find_class(module, name)

    def load_setitem(self) -> None:
        _check_key(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        for key in self.stack[::2]:
            _check_key(key)
        super().load_setitems()

    def load_reduce(self) -> None:
        _check_arguments(self.stack[-1])
        super().load_reduce()

    def load_newobj(self) -> None:
        _check_arguments(self.stack[-1])
        super().load_newobj()

    def _instantiate(self, klass: Any, args: Any) -> None:
        _check_arguments(args)
        super()._instantiate(klass, args)

    def load_build(self) -> None:
        kind = type(self.stack[-2])
        if (kind.__module__, kind.__qualname__) not in METADATA_CLASSES:
            raise pickle.UnpicklingError(f"it sets attributes of a {kind.__name__}")
        super().load_build()

    dispatch |= {
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
    }


def _check_key(key: Any) -> None:
    """Check a key of a dictionary: it is hashed."""
    if isinstance(key, MetadataIndex):
        offset = vars(key).get("offset")
        is_flat = isinstance(key.fqn, str) and isinstance(key.index, int | None) and _is_flat(offset)
    else:
        is_flat = isinstance(key, str | int)
    if not is_flat:
        raise pickle.UnpicklingError(f"a {type(key).__name__} is no name of a tensor")


def _check_arguments(arguments: Any) -> None:
    """Check arguments of a class or function: sizes, and values of enumerations, which are hashed."""
    if not all(map(_is_flat, arguments)):
        raise pickle.UnpicklingError("an argument holds lists within one another")


def _is_flat(value: Any) -> bool:
    plain = str | int | None
    return isinstance(value, plain) or (
        isinstance(value, list | tuple) and all(isinstance(entry, plain) for entry in value)
    )


_PICKLE = ".pkl"
_MOST_BYTES = 2**16
"""Most bytes of the pickle: a tensor has some 200."""


def foreign_names(file: BinaryIO, offset: int, length: int) -> list[str]:
    """Classes and functions beyond torch's list that the entry at this place asks for.

    Raises ValueError for what is no tensor that `torch.save` wrote.
    """
    asked = [name for content in _pickles(file, offset, length) for name in _names(content)]
    return [modern_name(name) for name in asked if name not in _get_allowed_globals()]


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


def modern_name(name: str) -> str:
    """The present name of a class or function: torch pickles by the names of Python 2."""
    module, _, rest = name.rpartition(".")
    return ".".join(filter(None, (IMPORT_MAPPING.get(module, module), rest)))
