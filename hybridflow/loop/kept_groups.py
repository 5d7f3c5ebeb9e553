"""Groups that were begun and not trained on, kept for the next step: one store, and one file format.

Two kinds stand in it side by side, oldest first: partial groups, which are decoded on, and the bank, complete groups
that count and that their step had no room for. A step takes them all, and what it leaves takes their place. The store
of this module is in memory and written with each checkpoint; another one, which keeps each group as it comes, has to
offer what `GroupStore` does, and no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from hybridflow.errors import CheckpointError
from hybridflow.types import Completion, PartialGroup, ScoredCompletion, Verdict

KEPT_GROUPS_FILE = "carried.msgpack"
"""In a checkpoint, beside state.json; absent where nothing is kept."""


class GroupStore(Protocol):
    """Keeps groups from one step to the next, and from one process to the next."""

    @property
    def groups(self) -> list[PartialGroup]:
        """Groups that a step left, in its order; the list is the caller's to change."""
        ...

    def replace(self, groups: Iterable[PartialGroup]) -> None:
        """A step has taken all that was there, and leaves these."""
        ...

    def save(self, folder: Path) -> None:
        """Puts them into a checkpoint that is being written."""
        ...


class KeptGroups:
    """Store in memory."""

    def __init__(self, groups: Iterable[PartialGroup] = ()) -> None:
        self._groups = list(groups)

    @property
    def groups(self) -> list[PartialGroup]:
        return list(self._groups)

    def replace(self, groups: Iterable[PartialGroup]) -> None:
        self._groups = list(groups)

    def save(self, folder: Path) -> None:
        if self._groups:
            content = _File(format=_FORMAT, groups=self._groups)
            (folder / KEPT_GROUPS_FILE).write_bytes(msgspec.msgpack.encode(content, enc_hook=_encode_member))

    @classmethod
    def load(cls, folder: Path) -> KeptGroups:
        """Reads the store of a checkpoint. Raises CheckpointError if the file cannot be read."""
        return cls(_read(folder / KEPT_GROUPS_FILE))


class _Member(msgspec.Struct, frozen=True, kw_only=True):
    """A ScoredCompletion in a checkpoint."""

    completion: Completion
    verdict: Verdict
    scored_by: str


def _encode_member(member: ScoredCompletion) -> _Member:
    return _Member(completion=member.completion, verdict=member.verdict, scored_by=member.scored_by)


def _decode_member(_: type, fields: dict[str, Any]) -> ScoredCompletion:
    member = msgspec.convert(fields, _Member)
    return ScoredCompletion(completion=member.completion, verdict=member.verdict, scored_by=member.scored_by)


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of KEPT_GROUPS_FILE."""

    format: int
    groups: list[PartialGroup]


_FORMAT = 2
"""1 was the list of groups alone, with each column of tokens in a field of its own."""


def _read(path: Path) -> list[PartialGroup]:
    if not path.exists():
        return []
    try:
        content = msgspec.msgpack.decode(path.read_bytes(), type=_File | list[msgspec.Raw], dec_hook=_decode_member)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as carried groups: {error}") from error
    if isinstance(content, list) or content.format != _FORMAT:
        found = 1 if isinstance(content, list) else content.format
        raise CheckpointError(
            f"{path} has format {found}, this version of hybridflow reads format {_FORMAT}. Resume with the version "
            "that wrote it, or from a checkpoint without this file"
        )
    return content.groups
