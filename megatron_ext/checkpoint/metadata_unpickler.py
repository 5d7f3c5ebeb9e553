"""Unpickles `.metadata` of a checkpoint, which may come from anybody: data classes of torch and Megatron, and no more.

A list of classes is not enough. A pickle may also set attributes of the classes themselves, and of eighty bytes make a
key that takes hours to hash (a tuple of twice the same tuple, forty times over) or ask for gigabytes. So values are set
on instances alone, keys and arguments are flat, and what Megatron's own files never use is refused. Pure Python, as
its opcodes can be looked at one by one: 0.5 us each, of which a file has some 100 per tensor and rank.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, ClassVar

import torch
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
