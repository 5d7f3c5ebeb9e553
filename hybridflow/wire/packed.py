"""A completion as it travels: text and numbers as bytes of their own, which stay in the frame that they came in.

The reward stream forwards and stores completions and reads neither. Packed, 10,000 tokens take 140 KB where Python
lists take 560 KB, and they become lists only where somebody needs them. msgpack rather than arrays of fixed width: the
engine, which has the least time, packs twice as fast.
"""

from __future__ import annotations

import msgspec

from hybridflow.errors import ProtocolError
from hybridflow.types import Completion, ScoredCompletion, Verdict, without_numbers

FLOAT_BYTES = 9
"""Of each element of a msgpack array of float64, its type included."""
OVERHEAD_BYTES = 1024
"""What one completion costs besides text and numbers: Python objects and table entries, rounded up."""

_encoder = msgspec.msgpack.Encoder()
_unpack_ints = msgspec.msgpack.Decoder(list[int]).decode
_unpack_floats = msgspec.msgpack.Decoder(list[float]).decode
_EMPTY = memoryview(_encoder.encode([]))


class PackedCompletion(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """A completion with text and numbers apart; holds the frame that it came in.

    Raises ValueError where the counts of its numbers differ, or logprobs are no float64.
    """

    head: Completion
    """Everything but these: its text and its lists are empty."""
    text: memoryview
    """UTF-8."""
    token_ids: memoryview
    """[T] integers."""
    rollout_logprobs: memoryview
    """[T] float64."""
    support_lengths: memoryview = _EMPTY
    """[T] integers, or none."""
    support_ids: memoryview = _EMPTY
    """[sum of the lengths] integers."""

    def __post_init__(self) -> None:
        num_tokens, start = _count(self.token_ids)
        # Arrays of as many elements begin with the same bytes.
        if (num_logprobs := num_tokens) and self.rollout_logprobs[:start] != self.token_ids[:start]:
            num_logprobs, start = _count(self.rollout_logprobs)
        if len(self.rollout_logprobs) != start + num_logprobs * FLOAT_BYTES:
            raise ValueError(f"{self.head.completion_id}: logprobs are cut off, or not all are floats")
        if num_tokens != num_logprobs:
            raise ValueError(f"{self.head.completion_id}: {num_tokens} tokens but {num_logprobs} logprobs")
        if len(self.support_lengths) > 1 and (num_lengths := _count(self.support_lengths)[0]) not in (0, num_tokens):
            raise ValueError(f"{self.head.completion_id}: {num_tokens} tokens but the support of {num_lengths}")

    @property
    def num_tokens(self) -> int:
        return _count(self.token_ids)[0]

    @property
    def num_bytes(self) -> int:
        """Memory held, about."""
        numbers = len(self.token_ids) + len(self.rollout_logprobs) + len(self.support_lengths) + len(self.support_ids)
        return OVERHEAD_BYTES + numbers + len(self.text)


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
        self._token_ids, self._logprobs = bytearray(), bytearray()
        self._packed: PackedCompletion | None = None

    def pack(self, completion: Completion) -> PackedCompletion:
        """To be used before the next is packed.

        Raises ProtocolError: ids and logprobs differ in number, a token id does not fit 64 bits, the text no UTF-8.
        """
        self._packed = None
        try:
            self._packed = PackedCompletion(
                head=without_numbers(completion),
                text=memoryview(completion.text.encode()),
                token_ids=_pack_into(completion.token_ids, self._token_ids),
                rollout_logprobs=_pack_into(completion.rollout_logprobs, self._logprobs),
                support_lengths=_pack_into(completion.support_lengths) if completion.support_lengths else _EMPTY,
                support_ids=_pack_into(completion.support_ids) if completion.support_ids else _EMPTY,
            )
        except (ValueError, OverflowError) as error:
            raise ProtocolError(f"completion {completion.completion_id} cannot be sent: {error}") from error
        return self._packed


def pack_completion(completion: Completion) -> PackedCompletion:
    """In memory of its own; raises what `Packer.pack` does."""
    return Packer().pack(completion)


def unpack_completion(packed: PackedCompletion) -> Completion:
    """The very completion that was packed. Raises ProtocolError where its numbers are none."""
    try:
        return msgspec.structs.replace(
            packed.head,
            text=_text_of(packed),
            token_ids=_unpack_ints(packed.token_ids),
            rollout_logprobs=_unpack_floats(packed.rollout_logprobs),
            support_lengths=_unpack_ints(packed.support_lengths),
            support_ids=_unpack_ints(packed.support_ids),
        )
    except msgspec.DecodeError as error:
        raise ProtocolError(f"completion {packed.head.completion_id} has malformed numbers: {error}") from error


def _pack_into(numbers: list[int] | list[float], memory: bytearray | None = None) -> memoryview:
    memory = bytearray() if memory is None else memory
    _encoder.encode_into(numbers, memory)
    return memoryview(memory)


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
