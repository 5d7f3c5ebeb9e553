"""Reads a checkpoint without letting it run anything: its pickles may ask only for what Megatron and torch write.

A pickle is a program, and a checksum does not say who wrote it. Three places of a checkpoint hold pickles:

    .metadata                   names, shapes and places of all tensors, and the plans by which they were written
    objects in *.distcp         random states, and what modules keep beside their weights
    common.pt                   what is not cut over ranks

Upstream (torch 2.13, Megatron-Core 0.16.1) reads the first two without a limit, and the third without one where
TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set. Here each asks for classes of a list, or is a BrokenCheckpointError that names
the class asked for. Tensors themselves are read by torch's own restricted reader.
"""

from __future__ import annotations

import io
import itertools
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, Metadata
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem

from megatron_ext import platform
from megatron_ext.checkpoint import commit
from megatron_ext.checkpoint.commit import BrokenCheckpointError
from megatron_ext.checkpoint.files import read_json
from megatron_ext.checkpoint.foreign_code import ForeignClassError, foreign_names, modern_name, unpickle_metadata

platform.install()

from megatron.core import dist_checkpointing  # noqa: E402
from megatron.core.dist_checkpointing.core import CheckpointingException  # noqa: E402
from megatron.core.dist_checkpointing.strategies import torch as torch_strategies  # noqa: E402
from megatron.core.dist_checkpointing.strategies.common import TorchCommonLoadStrategy  # noqa: E402

METADATA_FILE, COMMON_FILE, FORMAT_FILE = ".metadata", "common.pt", "metadata.json"
FORMAT = {"sharded_backend": "torch_dist", "common_backend": "torch"}
_MOST_LETTERS = 200
"""Letters that a checkpoint of somebody else may put into a message."""
_MEGATRON = "megatron.core.dist_checkpointing.strategies.torch"


def read_metadata(directory: str | Path) -> Metadata:
    """Read what a checkpoint says it holds. BrokenCheckpointError for a `.metadata` that is anything else."""
    path = Path(directory) / METADATA_FILE
    try:
        metadata = unpickle_metadata(path.read_bytes())
    except ForeignClassError as error:
        raise BrokenCheckpointError(_asks_for(path, str(error))) from error
    except Exception as error:  # a pickle that is no pickle can fail in any way
        raise BrokenCheckpointError(f"{path} cannot be read ({repr(error)[:_MOST_LETTERS]}): {_REMEDY}") from error
    if not (
        isinstance(metadata, Metadata)
        and _is_dict_of(metadata.state_dict_metadata, str, (TensorStorageMetadata, BytesStorageMetadata))
        and all(map(_has_shape, metadata.state_dict_metadata.values()))
        and _is_dict_of(metadata.storage_data, MetadataIndex, _StorageInfo)
        and all(isinstance(getattr(info, "relative_path", None), str) for info in metadata.storage_data.values())
    ):
        raise BrokenCheckpointError(f"{path} does not list the tensors of a checkpoint: {_REMEDY}")
    return metadata


def read_object(content: bytes, where: str) -> Any:
    """Tensors and plain values that `torch.save` wrote. BrokenCheckpointError, naming it, for any other class."""
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # as above
        raise BrokenCheckpointError(_describe(error, where)) from error


def check_objects(directory: str | Path, *, part: int = 0, num_parts: int = 1) -> None:
    """Finds out, changing nothing, whether `.metadata`, common.pt, tensors and the objects beside them can be read.

    Of tensors and objects every `num_parts`-th is looked at, from number `part` on. BrokenCheckpointError names the
    file, and the class that was asked for.
    """
    directory = Path(directory)
    _check_format(directory / FORMAT_FILE)
    metadata = read_metadata(directory)
    _read_common(directory)
    sizes = {name: entry.num_bytes for name, entry in commit.read_manifest(directory).files.items()}
    for index, info in metadata.storage_data.items():
        end = _end_in_file(info)
        if end is None or info.relative_path not in sizes or end > sizes[info.relative_path]:
            raise BrokenCheckpointError(
                f"{directory / METADATA_FILE} has {index.fqn} in bytes of {info.relative_path!r} that are not of this "
                f"checkpoint: {_REMEDY}"
            )
    _check_tensors(directory, metadata, part, num_parts)
    known: dict[bytes, Any] = {}
    for fqn, place, content in _object_contents(directory, metadata, part, num_parts):
        if content not in known:  # thousands are alike, and say nothing
            known[content] = read_object(content, place)
        _check_object(fqn, known[content], place)


def _check_tensors(directory: Path, metadata: Metadata, part: int, num_parts: int) -> None:
    """Check of every `num_parts`-th tensor that it asks for nothing but a tensor."""
    found = _entries(metadata, TensorStorageMetadata)[part::num_parts]
    for name, entries in itertools.groupby(found, key=lambda entry: entry[0]):
        with (directory / name).open("rb") as file:
            for _, offset, length, fqn in entries:
                place = f"{directory / name} ({fqn})"
                try:
                    foreign = foreign_names(file, offset, length)
                except ValueError as error:
                    raise BrokenCheckpointError(f"{place} holds no tensor ({error}): {_REMEDY}") from error
                if foreign:
                    raise BrokenCheckpointError(_asks_for(place, foreign[0]))


def load_state(state: dict[str, Any], directory: str | Path) -> dict[str, Any]:
    """`state` with what the checkpoint has for it; tensors in their places. Collective over all ranks.

    BrokenCheckpointError on every rank for what is missing, has another shape, or asks for a foreign class.
    """
    try:
        return dist_checkpointing.load(
            state,
            str(directory),
            sharded_strategy=torch_strategies.TorchDistLoadShardedStrategy(),
            common_strategy=_CommonState(),
        )
    except CheckpointingException as error:
        raise BrokenCheckpointError(f"{directory} lacks something that this model has: {error}") from error
    except CheckpointException as error:  # a BaseException, with what each rank met
        first = next(iter(error.failures.values()))[0]
        if isinstance(first, BrokenCheckpointError):
            raise BrokenCheckpointError(str(first)) from error
        raise BrokenCheckpointError(_describe(first, str(directory))) from error
    except (AttributeError, TypeError, ValueError, LookupError) as error:  # what it says of its tensors is not so
        if isinstance(error, BrokenCheckpointError):
            raise
        raise BrokenCheckpointError(_describe(error, str(directory))) from error


class _CommonState(TorchCommonLoadStrategy):
    def load_common(self, checkpoint_dir: str | Path) -> dict[str, Any]:
        return _read_common(Path(checkpoint_dir))


class _Reader(FileSystemReader):
    """Asks for `.metadata` once, and for no file of a single rank in its place."""

    def read_metadata(self) -> Metadata:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not hasattr(self, "_metadata"):
            self._metadata = read_metadata(Path(self.path))
        return self._metadata


def _open_reader(checkpoint_dir: str | Path, cache_metadata: bool = False) -> FileSystemReader:
    return _Reader(checkpoint_dir)


class _Planner(torch_strategies.MCoreLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        fqn = read_item.dest_index.fqn
        set_element(self.original_state_dict, self.mappings[fqn], read_object(value.getvalue(), fqn))


for _name, _ours in (("_get_filesystem_reader", _open_reader), ("MCoreLoadPlanner", _Planner)):
    if not hasattr(torch_strategies, _name):
        raise platform.PlatformError(
            f"{_MEGATRON}.{_name} is gone: see how checkpoints are read now, and that they run nothing"
        )
    setattr(torch_strategies, _name, _ours)

_REMEDY = "do not use this checkpoint unless you know who made it; use one that this program wrote"


def _check_format(path: Path) -> None:
    """Megatron chooses the reader by this file, and does not look whether the reader that it is given fits."""
    try:
        content = read_json(path)
        found = {key: content[key] for key in FORMAT}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BrokenCheckpointError(f"{path} cannot be read ({error!r}): {_REMEDY}") from error
    if found != FORMAT:
        raise BrokenCheckpointError(f"{path} says {found}, this program writes {FORMAT}: {_REMEDY}")


def _read_common(directory: Path) -> dict[str, Any]:
    path = directory / COMMON_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BrokenCheckpointError(f"{path} cannot be read ({error.strerror}): {_REMEDY}") from error
    common = read_object(content, str(path))
    if not isinstance(common, dict):
        raise BrokenCheckpointError(f"{path} holds a {type(common).__name__} and no state: {_REMEDY}")
    return common


def _object_contents(
    directory: Path, metadata: Metadata, part: int, num_parts: int
) -> Iterator[tuple[str, str, bytes]]:
    """Key of each object of this part, where it is for a message, and its bytes; file by file."""
    for name, offset, length, fqn in _entries(metadata, BytesStorageMetadata)[part::num_parts]:
        with (directory / name).open("rb") as file:
            file.seek(offset)
            yield fqn, f"{directory / name} ({fqn})", file.read(length)


def _entries(metadata: Metadata, kind: type) -> list[tuple[str, int, int, str]]:
    """File, offset, length and key of each entry of this kind, in the order in which they lie."""
    kinds = metadata.state_dict_metadata
    return sorted(
        (info.relative_path, info.offset, info.length, index.fqn)
        for index, info in metadata.storage_data.items()
        if isinstance(kinds.get(index.fqn), kind)
    )


def _check_object(fqn: str, value: Any, place: str) -> None:
    """Random states are tensors; extra state is empty: with content, Transformer Engine would unpickle it."""
    for entry in value if isinstance(value, list) else [value]:  # Megatron wraps each object in a list
        is_empty = entry is None or (isinstance(entry, torch.Tensor) and entry.numel() == 0)
        if "_extra_state" in fqn and not is_empty:
            raise BrokenCheckpointError(f"{place} holds a {type(entry).__name__} where nothing belongs: {_REMEDY}")
        if fqn.startswith("rng/") and not _is_dict_of(entry, str, torch.Tensor):
            raise BrokenCheckpointError(f"{place} holds no random states: {_REMEDY}")


def _end_in_file(info: _StorageInfo) -> int | None:
    """Offset behind the last byte; None for what is no range, or would have to be decompressed by a plug-in."""
    if not (isinstance(info.offset, int) and isinstance(info.length, int)) or info.offset < 0 or info.length < 0:
        return None
    return None if info.transform_descriptors else info.offset + info.length


def _has_shape(entry: TensorStorageMetadata | BytesStorageMetadata) -> bool:
    """Whether an entry says of a tensor what there must be to read it; objects have nothing to say."""
    if isinstance(entry, BytesStorageMetadata):
        return True
    size, chunks = getattr(entry, "size", None), getattr(entry, "chunks", None)
    return (
        isinstance(size, torch.Size)
        and isinstance(getattr(entry, "properties", None), TensorProperties)
        and isinstance(chunks, list)
        and all(
            isinstance(chunk, ChunkStorageMetadata)
            and all(isinstance(getattr(chunk, name, None), torch.Size) for name in ("offsets", "sizes"))
            for chunk in chunks
        )
    )


def _is_dict_of(value: Any, key: type, entry: type | tuple[type, ...]) -> bool:
    return isinstance(value, dict) and all(isinstance(k, key) and isinstance(v, entry) for k, v in value.items())


def _asks_for(where: str | Path, name: str) -> str:
    told = name[:_MOST_LETTERS]
    return f"{where} asks for {told}, which is no part of a checkpoint: it would run code of whoever made it; {_REMEDY}"


def _describe(error: BaseException, where: str) -> str:
    """torch says in many words which class it refused, by the name that Python 2 had for it."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, pickle.UnpicklingError):
        if asked := re.search(r"GLOBAL ([\w.]+)", text):
            return _asks_for(where, modern_name(asked[1]))
        text = text.partition("WeightsUnpickler error: ")[2] or text
    return f"{where} cannot be read ({type(error).__name__}: {text.splitlines()[0]}): {_REMEDY}"
