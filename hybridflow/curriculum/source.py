"""Source of prompts: what every one can do, and how its state travels in a checkpoint.

    source.next(8)              prompts of the groups that a step begins
    source.replace(prompts)     of those that it begins in place of groups that do not count
    source.observe(groups)      the groups of the step, complete and scored
    source.state_dict()  --->  state.json of a checkpoint  --->  source.load_state_dict(...)

After `load_state_dict` a source hands out what the source that was saved would have handed out next, so that a run that
was stopped and resumed trains on the same prompts in the same order as one that was not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from hybridflow.data.streams import draw_range
from hybridflow.errors import CheckpointError
from hybridflow.types import Group, Prompt


class PromptSource(Protocol):
    """Hands out the prompts of training, in an order of its own."""

    name: str
    """Stands in checkpoints: a state is given back only to a source of the same name."""

    def next(self, num_prompts: int) -> list[Prompt]:
        """The prompts of the next `num_prompts` groups; each call goes on where the last one ended."""
        ...

    def replace(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """One prompt for each of `prompts`, whose groups do not count: a source that keeps shares of kinds of prompts
        gives another one of the same kind, and any other source its next ones."""
        ...

    def observe(self, groups: Sequence[Group]) -> None:
        """Takes the groups of a step, in the order of their requests, filtered ones included, once per step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State that decides what comes next, as JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state that `state_dict` gave. ValueError, which says what is wrong, for any other."""
        ...


class ShuffledEpochs:
    """Endless walk over prompts, in epochs that are each a seeded permutation.

    The order follows from `stream` (names and seeds of the walk) and the number of prompts, so the state is one number:
    how many were taken. A call of `next` may span two epochs.
    """

    name = "shuffled_epochs"

    def __init__(self, prompts: Sequence[Prompt], stream: tuple[str | int, ...]) -> None:
        self._prompts = prompts
        self._stream = stream
        self._num_taken = 0

    def next(self, num_prompts: int) -> list[Prompt]:
        chosen = draw_range(self._stream, len(self._prompts), self._num_taken, num_prompts)
        self._num_taken += num_prompts
        return [self._prompts[index] for index in chosen]

    def replace(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        return self.next(len(prompts))

    def observe(self, groups: Sequence[Group]) -> None:
        """Whatever came of them, the order stays."""

    def state_dict(self) -> dict[str, Any]:
        return {"num_taken": self._num_taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        num_taken = state.get("num_taken")
        if type(num_taken) is not int or num_taken < 0 or len(state) != 1:
            raise ValueError(f"expected {{'num_taken': a number of prompts}}, got {str(state)[:80]}")
        self._num_taken = num_taken


class SavedSource(msgspec.Struct, frozen=True, kw_only=True):
    """A source's state in a checkpoint."""

    name: str
    state: dict[str, Any]
    rows: str = ""
    """Digest of the prompts that it hands out; empty in checkpoints of earlier versions."""


def save_source(source: PromptSource, rows: str = "") -> SavedSource:
    return SavedSource(name=source.name, state=source.state_dict(), rows=rows)


def restore_source(source: PromptSource, saved: SavedSource | None, num_taken: int, path: Path, rows: str = "") -> None:
    """Sets `source` to the state that the checkpoint's file `path` holds; `rows` is the digest of its prompts now.

    `saved` is None in checkpoints that were written before sources had a state: all of these took their prompts in
    shuffled epochs, and `num_taken` of them.
    Raises CheckpointError for the state of another source or of other prompts, and for a value that is none.
    """
    found = saved or SavedSource(name=ShuffledEpochs.name, state={"num_taken": num_taken})
    if found.name != source.name:
        raise CheckpointError(
            f"{path}: source.name is {found.name!r}, but this run takes its prompts from {source.name!r}, which cannot "
            f"go on from there. Remedy: resume with the source that the checkpoint names, or start a new run"
        )
    if found.rows and found.rows != rows:
        raise CheckpointError(
            f"{path}: the rows to train on are not those that the run began with: a text, a gold answer, their number "
            f"or their order has changed since. Remedy: put the files back that data.train_path and "
            f"curriculum.phases.N.train_path named then, or start a new run"
        )
    try:
        source.load_state_dict(found.state)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: source.state: {error}. Remedy: put the file back as it was saved, or resume from an earlier "
            f"checkpoint (move this one away)"
        ) from error
