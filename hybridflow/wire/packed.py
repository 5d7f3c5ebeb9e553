"""A completion as it travels: text and token columns as bytes of their own, which stay in the frame that they came in.

The reward stream forwards and stores completions and reads neither. Packed, 10,000 tokens take 140 KB where Python
lists take 560 KB, and they become lists only where somebody needs them. msgpack rather than arrays of fixed width: the
engine, which has the least time, packs twice as fast.
"""

from __future__ import annotations

import msgspec

from hybridflow.errors import ProtocolError
from hybridflow.types import Completion, ScoredCompletion, Verdict, without_numbers
from hybridflow.types.tokens import COLUMNS, Ragged, build_columns

FLOAT_BYTES = 9
"""Bytes of each element of a msgpack array of float64, its type included."""
OVERHEAD_BYTES = 1024
"""Bytes that one completion costs besides text and numbers: Python objects and table entries, rounded up."""

_encoder = msgspec.msgpack.Encoder()
_FLOATS = frozenset(name for name, kind in COLUMNS.items() if kind == list[float])
_RAGGED = frozenset(name for name, kind in COLUMNS.items() if kind is Ragged)
_unpack = {name: msgspec.msgpack.Decoder(kind).decode for name, kind in COLUMNS.items()}
_PAIR = b"\x92"
"""How a msgpack array of two begins."""
_EMPTY = memoryview(_encoder.encode([]))


class PackedCompletion(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """A completion with text and token columns apart; holds the frame that it came in.

    Raises ValueError where the counts of its columns differ, or one of floats holds anything but float64.
    """

    head: Completion
    """Everything but these: its text and its tokens are empty."""
    text: memoryview
    """UTF-8."""
    columns: dict[str, memoryview]
    """By name, those of `TokenColumns` that are there: msgpack arrays."""

    def __post_init__(self) -> None:
        ids = self.columns.get("ids", _EMPTY)
        num_tokens, start = _count(ids)
        num_bytes = start + num_tokens * FLOAT_BYTES
        for name, array in self.columns.items():
            if name in _FLOATS:
                # Arrays of as many elements begin with the same bytes.
                if len(array) != num_bytes or array[:start] != ids[:start]:
                    _refuse_floats(self.head.completion_id, name, array, num_tokens)
            elif name in _RAGGED:
                if array[:1] != _PAIR:
                    raise ValueError(f"{self.head.completion_id}: {name} is no pair of lengths and values")
                _check_count(self.head.completion_id, name, array[1:], num_tokens)
            elif name != "ids":
                if name not in COLUMNS:
                    raise ValueError(f"{self.head.completion_id}: {name!r:.40} is no token column")
                _check_count(self.head.completion_id, name, array, num_tokens)

    @property
    def num_tokens(self) -> int:
        return _count(self.columns.get("ids", _EMPTY))[0]

    @property
    def num_bytes(self) -> int:
        """Memory held, about."""
        return OVERHEAD_BYTES + sum(map(len, self.columns.values())) + len(self.text)


def _check_count(completion_id: str, name: str, array: memoryview, num_tokens: int) -> None:
    if (num_entries := _count(array)[0]) != num_tokens:
        raise ValueError(f"{completion_id}: {num_tokens} tokens but {num_entries} entries of {name}")


def _refuse_floats(completion_id: str, name: str, array: memoryview, num_tokens: int) -> None:
    num_entries, start = _count(array)
    if len(array) != start + num_entries * FLOAT_BYTES:
        raise ValueError(f"{completion_id}: {name} is cut off, or not all are floats")
    _check_count(completion_id, name, array, num_tokens)


class ScoredPacked(ScoredCompletion):
    """A scored completion that stays packed until its text or its numbers are needed; they are made at each use."""

    __slots__ = ("num_bytes", "packed")

    def __init__(self, packed: PackedCompletion, num_bytes: int, verdict: Verdict, scored_by: str) -> None:
        self.packed = packed
        self.num_bytes = num_bytes
        self.head = packed.head
        self.verdict = verdict
        self.scored_by = scored_by

    @property
    def completion(self) -> Completion:
        return unpack_completion(self.packed)

    @property
    def text(self) -> str:
        return _text_of(self.packed)

    @property
    def num_tokens(self) -> int:
        return self.packed.num_tokens


class Packer:
    """Packs one completion after the other in the same memory: fresh memory for each costs as much as packing it."""

    def __init__(self) -> None:
        self._memory = {name: bytearray() for name in COLUMNS}
        self._packed: PackedCompletion | None = None

    def pack(self, completion: Completion) -> PackedCompletion:
        """To be used before the next is packed.

        Raises ProtocolError: columns differ in length, a number does not fit 64 bits, the text no UTF-8.
        """
        self._packed = None
        tokens, columns = completion.tokens, {}
        try:
            for name, memory in self._memory.items():
                if values := getattr(tokens, name):
                    _encoder.encode_into(values, memory)
                    columns[name] = memoryview(memory)
            self._packed = PackedCompletion(
                head=without_numbers(completion), text=memoryview(completion.text.encode()), columns=columns
            )
        except (ValueError, OverflowError) as error:
            raise ProtocolError(f"completion {completion.completion_id} cannot be sent: {error}") from error
        return self._packed


def pack_completion(completion: Completion) -> PackedCompletion:
    """In memory of its own; raises what `Packer.pack` does."""
    return Packer().pack(completion)


def unpack_completion(packed: PackedCompletion) -> Completion:
    """The very completion that was packed. Raises ProtocolError where its numbers are none, or do not fit."""
    try:
        tokens = build_columns({name: _unpack[name](array) for name, array in packed.columns.items()})
        tokens.check()
    except ValueError as error:
        raise ProtocolError(f"completion {packed.head.completion_id} has malformed numbers: {error}") from error
    return msgspec.structs.replace(packed.head, text=_text_of(packed), tokens=tokens)


def _text_of(packed: PackedCompletion) -> str:
    try:
        return str(packed.text, "utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError(f"completion {packed.head.completion_id} has a malformed text: {error}") from error


def _count(array: memoryview) -> tuple[int, int]:
    """(elements of a msgpack array, where they begin), from its head; ValueError where it is none."""
    kind = array[0] if array else 0
    if kind & 0xF0 == 0x90:
        return kind & 0x0F, 1
    num_bytes = 2 if kind == 0xDC else 4 if kind == 0xDD else 0
    if not num_bytes or len(array) <= num_bytes:
        raise ValueError("numbers are no msgpack array")
    return int.from_bytes(array[1 : 1 + num_bytes], "big"), 1 + num_bytes
