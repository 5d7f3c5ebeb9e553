"""Token columns: the numbers that stand beside each token of a response, from the engine to the loss.

A completion, the beginning of one, the packed completion on the wire and a row of the training batch hold the same
record, `TokenColumns`, and whoever cuts, joins, packs or checks it works from its fields. So a further column is

    a field of `TokenColumns`                           here
    the engine's answer that fills it                   rollout/engine/sglang_messages.py
    the loss, or the part of the model, that reads it   by its name: among `loss_inputs` or `ragged_inputs` of a
                                                        `megatron_ext` micro-batch

and no other file. A column that is empty is absent and costs nothing on the way.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import msgspec


class Ragged(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Some integers per token, of a number that differs from token to token.

    Example: Ragged([2, 0, 1], [7, 9, 4]) has 7 and 9 for the first token, nothing for the second, 4 for the third.
    """

    lengths: list[int] = []
    """[T]."""
    values: list[int] = []
    """[sum of the lengths], token after token."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        """From the integers of each token."""
        return cls([len(row) for row in rows], [value for row in rows for value in row])

    def __len__(self) -> int:
        return len(self.lengths)


class Packed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The same number of small integers for each token, as bytes: a list of them would take eight times the memory.

    Raises ValueError for bytes that are no whole number of tokens.
    """

    shape: tuple[int, int] = (0, 0)
    """Rows and columns of the integers of one token."""
    bytes_each: int = 1
    """1 or 2, little-endian."""
    data: bytes = b""
    """Token after token."""

    def __post_init__(self) -> None:
        if self.bytes_each not in (1, 2) or min(self.shape) < 0 or (self.data and len(self.data) % self.width):
            raise ValueError(
                f"{len(self.data)} bytes are no whole tokens of {self.shape} integers of {self.bytes_each} bytes"
            )

    @property
    def width(self) -> int:
        """Bytes of one token; 1 where it has no integer, so that any byte is one too many."""
        return self.shape[0] * self.shape[1] * self.bytes_each or len(self.data) + 1

    def __len__(self) -> int:
        return len(self.data) // self.width

    def take(self, places: Sequence[int]) -> Packed:
        """The integers of the tokens at these places."""
        pieces = [self.data[place * self.width : (place + 1) * self.width] for place in places]
        return Packed(self.shape, self.bytes_each, b"".join(pieces))


Values = list[int] | list[float] | Ragged | Packed
_V = TypeVar("_V", bound=Values)
_NOTHING = Ragged()
NOT_PACKED = Packed()


class TokenColumns(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Columns of the T tokens of a response; see the module for how to add a column.

    Each column has T entries or, where it is absent, none. Its type says of what kind it is: `list[int]`,
    `list[float]`, `Ragged` or `Packed`.
    """

    ids: list[int] = []
    """The tokens; the end token, where the policy wrote one, is included."""
    rollout_logprobs: list[float] = []
    """The engine's, at the sampling temperature. With a `sampling_mask` those of the renormalised distribution."""
    sampling_mask: Ragged = _NOTHING
    """Tokens that could have been drawn in place of each, where sampling (top-p) leaves some out. Absent, or with no
    token at a place: any could."""
    experts: Packed = NOT_PACKED
    """Experts that the engine chose in the pass that drew each token, that of the token before it: layers with experts
    x experts of a token. What it chose for the rest of the prompt is `Completion.prompt_experts`."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def present(self) -> dict[str, Values]:
        """The columns that are there, `ids` included, by name."""
        return {name: values for name in COLUMNS if len(values := getattr(self, name))}

    def check(self) -> None:
        """Raises ValueError where columns contradict each other in length."""
        for name, values in self.present.items():
            if len(values) != len(self.ids):
                raise ValueError(f"{len(self.ids)} tokens but {len(values)} entries of {name}")
            if isinstance(values, Ragged) and sum(values.lengths) != len(values.values):
                raise ValueError(
                    f"{name} has {len(values.values)} values where the lengths add up to {sum(values.lengths)}"
                )

    def first(self, num_tokens: int) -> TokenColumns:
        """The first tokens, or all where there are fewer."""
        return build_columns(
            {name: select(values, range(min(num_tokens, len(values)))) for name, values in self.present.items()}
        )


COLUMNS: dict[str, type] = {field.name: field.type for field in msgspec.structs.fields(TokenColumns)}
"""Kind of each column by name: `list[int]`, `list[float]`, `Ragged` or `Packed`."""


def build_columns(columns: Mapping[str, Any]) -> TokenColumns:
    """From values by name, each of the kind that `COLUMNS` says."""
    return TokenColumns(**columns)


def concatenate(parts: Sequence[TokenColumns]) -> TokenColumns:
    """The tokens of one part after another; parts without a token add nothing.

    Raises ValueError where one part has a column and another one has not.
    """
    filled = [part.present for part in parts if len(part)]
    if not filled:
        return TokenColumns()
    for part in filled:
        if part.keys() != filled[0].keys():
            raise ValueError(f"tokens with {', '.join(filled[0])} cannot be joined with tokens with {', '.join(part)}")
    return build_columns({name: _join([part[name] for part in filled]) for name in filled[0]})


def concatenate_packed(parts: Sequence[Packed]) -> Packed:
    """The tokens of one part after another; ValueError where they are of different shapes."""
    filled = [part for part in parts if len(part)]
    kinds = {(part.shape, part.bytes_each) for part in filled}
    if len(kinds) > 1:
        raise ValueError(f"packed columns of {' and '.join(map(str, sorted(kinds)))} cannot be joined")
    return Packed(*kinds.pop(), b"".join(part.data for part in filled)) if filled else NOT_PACKED


def select(values: _V, places: Sequence[int]) -> _V:
    """The entries at some places, in their order."""
    if isinstance(values, Ragged):
        ends = list(itertools.accumulate(values.lengths))
        pieces = [values.values[ends[place] - values.lengths[place] : ends[place]] for place in places]
        return cast(_V, Ragged.of(pieces))
    if isinstance(values, Packed):
        return cast(_V, values.take(places))
    return cast(_V, [values[place] for place in places])


def _join(pieces: Sequence[Values]) -> Values:
    if isinstance(pieces[0], Ragged):
        ragged = cast("Sequence[Ragged]", pieces)
        return Ragged([n for it in ragged for n in it.lengths], [value for it in ragged for value in it.values])
    if isinstance(pieces[0], Packed):
        packed = cast("Sequence[Packed]", pieces)
        if len({(it.shape, it.bytes_each) for it in packed}) > 1:
            raise ValueError(
                f"columns of {', '.join(str((it.shape, it.bytes_each)) for it in packed)} cannot be joined"
            )
        return Packed(packed[0].shape, packed[0].bytes_each, b"".join(it.data for it in packed))
    return cast("list[float]", [value for piece in pieces for value in cast("list[float]", piece)])
