"""Checkpoints of a training run: `warmup-01`, ..., then `rl-000010`, ..., each with the RunState of its moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from hybridflow.errors import CheckpointError
from hybridflow.protocols import CheckpointReader, CheckpointWriter
from hybridflow.recording.run_folder.checkpoints import WEIGHTS_FOLDER, CheckpointFolder
from hybridflow.recording.state import RunState, write_state
from hybridflow.types import Completion, PartialGroup, ScoredCompletion, Verdict

PARTIAL_GROUPS_FILE = "carried.msgpack"
"""In a checkpoint, beside state.json; absent where nothing is carried."""


class Checkpoints:
    """Saves and finds the checkpoints of one run; keeps the last `keep_last`. Errors as in CheckpointFolder."""

    def __init__(self, directory: Path, keep_last: int, in_background: bool = False) -> None:
        self._folder = CheckpointFolder(directory, keep_last, in_background, age=_age)
        self.finish = self._folder.finish
        self.list = self._folder.list
        self.latest = self._folder.latest

    def save(self, trainer: CheckpointWriter, state: RunState, partial_groups: Sequence[PartialGroup] = ()) -> Path:
        """Writes weights, optimizer, state and partial groups; see `CheckpointFolder.save`."""

        def write(path: Path) -> None:
            write_state(state, path)
            write_partial_groups(partial_groups, path.parent)

        name = f"rl-{state.rl_step:06d}" if state.rl_step else f"warmup-{state.warmup_stages_done:02d}"
        return self._folder.save(trainer, name, write)


def restore(checkpoint: Path, trainer: CheckpointReader) -> list[PartialGroup]:
    """Loads weights and optimizer into the trainer; returns the partial groups. CheckpointError if unreadable."""
    partial_groups = read_partial_groups(checkpoint)
    trainer.load_checkpoint(checkpoint / WEIGHTS_FOLDER)
    return partial_groups


def _age(name: str) -> tuple[bool, str]:
    return name.startswith("rl-"), name


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


class _PartialGroupsFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of PARTIAL_GROUPS_FILE."""

    format: int
    groups: list[PartialGroup]


_FORMAT = 2
"""1 was the list of groups alone, with each column of tokens in a field of its own."""


def write_partial_groups(carried: Sequence[PartialGroup], folder: Path) -> None:
    """Puts partial groups into a checkpoint."""
    if carried:
        content = _PartialGroupsFile(format=_FORMAT, groups=list(carried))
        (folder / PARTIAL_GROUPS_FILE).write_bytes(msgspec.msgpack.encode(content, enc_hook=_encode_member))


def read_partial_groups(folder: Path) -> list[PartialGroup]:
    """Partial groups of a checkpoint. Raises CheckpointError if the file cannot be read."""
    path = folder / PARTIAL_GROUPS_FILE
    if not path.exists():
        return []
    try:
        content = msgspec.msgpack.decode(
            path.read_bytes(), type=_PartialGroupsFile | list[msgspec.Raw], dec_hook=_decode_member
        )
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{path}: not readable as carried groups: {error}") from error
    if isinstance(content, list) or content.format != _FORMAT:
        found = 1 if isinstance(content, list) else content.format
        raise CheckpointError(
            f"{path} has format {found}, this version of hybridflow reads format {_FORMAT}. Resume with the version "
            "that wrote it, or from a checkpoint without this file"
        )
    return content.groups
