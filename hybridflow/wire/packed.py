"""A completion as it travels: each list of its numbers as a msgpack array of its own, which stays bytes.

The reward stream forwards and stores completions and reads no number of them. Packed, 10,000 tokens take 140 KB where
Python lists take 560 KB, and they become lists only where somebody needs them. msgpack rather than arrays of fixed
width: the engine, which has the least time, packs twice as fast.
"""

from __future__ import annotations

import msgspec

from hybridflow.errors import ProtocolError
from hybridflow.types import Completion, without_numbers

FLOAT_BYTES = 9
"""Of each element of a msgpack array of float64, its type included."""
OVERHEAD_BYTES = 1024
"""What one completion costs besides text and numbers: Python objects and table entries, rounded up."""

_pack = msgspec.msgpack.Encoder().encode
_unpack_ints = msgspec.msgpack.Decoder(list[int]).decode
_unpack_floats = msgspec.msgpack.Decoder(list[float]).decode
_EMPTY = _pack([])


class PackedCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """A completion with its numbers apart; ValueError where their counts differ, or the logprobs are no float64."""

    head: Completion
    """Everything but the numbers: these lists are empty."""
    token_ids: bytes
    """[T] integers."""
    rollout_logprobs: bytes
    """[T] float64."""
    support_lengths: bytes = _EMPTY
    """[T] integers, or none."""
    support_ids: bytes = _EMPTY
    """[sum of the lengths] integers."""

    def __post_init__(self) -> None:
        num_tokens, _ = _count(self.token_ids)
        num_logprobs, start = _count(self.rollout_logprobs)
        if len(self.rollout_logprobs) != start + num_logprobs * FLOAT_BYTES:
            raise ValueError(f"{self.head.completion_id}: logprobs are cut off, or not all are floats")
        if num_tokens != num_logprobs:
            raise ValueError(f"{self.head.completion_id}: {num_tokens} tokens but {num_logprobs} logprobs")
        num_lengths, _ = _count(self.support_lengths)
        if num_lengths not in (0, num_tokens):
            raise ValueError(f"{self.head.completion_id}: {num_tokens} tokens but the support of {num_lengths}")

    @property
    def num_tokens(self) -> int:
        return _count(self.token_ids)[0]

    @property
    def num_bytes(self) -> int:
        """Memory held, about."""
        numbers = len(self.token_ids) + len(self.rollout_logprobs) + len(self.support_lengths) + len(self.support_ids)
        return OVERHEAD_BYTES + numbers + len(self.head.text)


def pack_completion(completion: Completion) -> PackedCompletion:
    """Raises ProtocolError: ids and logprobs differ in number, or a token id does not fit 64 bits."""
    try:
        return PackedCompletion(
            head=without_numbers(completion),
            token_ids=_pack(completion.token_ids),
            rollout_logprobs=_pack(completion.rollout_logprobs),
            support_lengths=_pack(completion.support_lengths),
            support_ids=_pack(completion.support_ids),
        )
    except (ValueError, OverflowError) as error:
        raise ProtocolError(f"completion {completion.completion_id} cannot be sent: {error}") from error


def unpack_completion(packed: PackedCompletion) -> Completion:
    """The very completion that was packed. Raises ProtocolError where its numbers are none."""
    try:
        return msgspec.structs.replace(
            packed.head,
            token_ids=_unpack_ints(packed.token_ids),
            rollout_logprobs=_unpack_floats(packed.rollout_logprobs),
            support_lengths=_unpack_ints(packed.support_lengths),
            support_ids=_unpack_ints(packed.support_ids),
        )
    except msgspec.DecodeError as error:
        raise ProtocolError(f"completion {packed.head.completion_id} has malformed numbers: {error}") from error


def _count(array: bytes) -> tuple[int, int]:
    """(elements of a msgpack array, where they begin), from its head; ValueError where it is none."""
    kind = array[0] if array else 0
    if kind & 0xF0 == 0x90:
        return kind & 0x0F, 1
    num_bytes = {0xDC: 2, 0xDD: 4}.get(kind)
    if num_bytes is None or len(array) <= num_bytes:
        raise ValueError("numbers are no msgpack array")
    return int.from_bytes(array[1 : 1 + num_bytes], "big"), 1 + num_bytes
