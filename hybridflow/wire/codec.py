"""Messages as bytes: a frame is one byte of schema version, then a msgpack array of at least one message. No pickle.

What is decoded refers to the frame where it is bytes (texts of completions, packed numbers), which is not copied. Small
messages share a frame, and frames that are there at the same time leave as one ZeroMQ message of several parts: a
wake-up, a system call and the interpreter lock cost more than a message does. A frame that is empty, of another
version, too large, cut off, or not exactly of the expected types is a ProtocolError: it can only be refused.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from hybridflow.errors import ProtocolError
from hybridflow.wire.messages import FromEngine, FromWorker, Message, ToEngine, ToWorker

SCHEMA_VERSION = 7
"""Raised by one whenever a message or a record in it changes."""

MAX_FRAME_BYTES = 64 * 2**20
"""A completion of 120K tokens is about 2 MiB; whatever is above this bound was not sent by an engine of ours."""

MAX_BATCH_BYTES = 120 * 2**10
"""Messages share a frame up to this size. From 128 KiB on, the C library takes fresh, zeroed pages for each copy."""

_HEAD_BYTES = 4
_T = TypeVar("_T")
_SomeOf = Annotated[list[_T], msgspec.Meta(min_length=1)]
_encoder = msgspec.msgpack.Encoder()
_from_worker: msgspec.msgpack.Decoder[list[FromWorker]] = msgspec.msgpack.Decoder(_SomeOf[FromWorker])
_from_engine: msgspec.msgpack.Decoder[list[FromEngine]] = msgspec.msgpack.Decoder(_SomeOf[FromEngine])
_to_engine: msgspec.msgpack.Decoder[list[ToEngine]] = msgspec.msgpack.Decoder(_SomeOf[ToEngine])
_to_worker: msgspec.msgpack.Decoder[list[ToWorker]] = msgspec.msgpack.Decoder(_SomeOf[ToWorker])


def encode(message: Message, memory: bytearray | None = None) -> bytearray:
    """The frame of one message; in place of what `memory` holds, where it is given: fresh memory costs a large message
    as much as its bytes do.

    Raises:
        ProtocolError: it would be above MAX_FRAME_BYTES; the receiver would refuse it, so it is refused here.
    """
    frame = bytearray() if memory is None else memory
    frame[:_HEAD_BYTES] = _HEAD_OF_ONE
    _encoder.encode_into(message, frame, _HEAD_BYTES)
    _check_size(frame, message)
    return frame


class Batch:
    """Messages for one receiver, in as few frames as hold them: of up to MAX_BATCH_BYTES, or of one message."""

    __slots__ = ("_frame", "_frames", "_num_messages")

    def __init__(self) -> None:
        self._frames: list[bytearray] = []
        self._frame = bytearray(_head(0))
        self._num_messages = 0

    def add(self, message: Message) -> None:
        """Raises ProtocolError for one above MAX_FRAME_BYTES."""
        frame, begin = self._frame, len(self._frame)
        _encoder.encode_into(message, frame, -1)
        if begin == _HEAD_BYTES or len(frame) <= MAX_BATCH_BYTES:
            _check_size(frame, message)
        else:  # it begins the next frame
            alone = bytearray(_head(0)) + memoryview(frame)[begin:]
            _check_size(alone, message)
            del frame[begin:]
            self._end_frame()
            self._frame = alone
        self._num_messages += 1

    def take_frames(self) -> list[bytearray]:
        """All that was added since the last call."""
        if self._num_messages:
            self._end_frame()
            self._frame = bytearray(_head(0))
        frames, self._frames = self._frames, []
        return frames

    def _end_frame(self) -> None:
        self._frame[2:_HEAD_BYTES] = self._num_messages.to_bytes(2, "big")
        self._frames.append(self._frame)
        self._num_messages = 0


def _check_size(frame: bytearray, message: Message) -> None:
    if len(frame) > MAX_FRAME_BYTES:
        raise ProtocolError(
            f"{type(message).__name__} message has {len(frame)} bytes, above the limit of {MAX_FRAME_BYTES}"
        )


def _head(num_messages: int) -> bytes:
    """Schema version, and the head of a msgpack array of 16 bits length."""
    return bytes((SCHEMA_VERSION, 0xDC, *num_messages.to_bytes(2, "big")))


_HEAD_OF_ONE = _head(1)


def decode_from_worker(frame: bytes | bytearray | memoryview) -> list[FromWorker]:
    """Ready, ScoreReply or Bye; ProtocolError on anything else."""
    return _decode(frame, _from_worker, "reward worker")


def decode_from_engine(frame: bytes | bytearray | memoryview) -> list[FromEngine]:
    """Finished or Hello; ProtocolError on anything else."""
    return _decode(frame, _from_engine, "rollout engine")


def decode_to_engine(frame: bytes | bytearray | memoryview) -> list[ToEngine]:
    """Accepted; ProtocolError on anything else."""
    return _decode(frame, _to_engine, "reward stream")


def decode_to_worker(frame: bytes | bytearray | memoryview) -> list[ToWorker]:
    """Work or Stop; ProtocolError on anything else."""
    return _decode(frame, _to_worker, "reward stream")


def _decode(frame: bytes | bytearray | memoryview, decoder: msgspec.msgpack.Decoder[_T], sender: str) -> _T:
    if not frame or len(frame) > MAX_FRAME_BYTES:
        raise ProtocolError(f"message from a {sender} has {len(frame)} bytes, must be 1 to {MAX_FRAME_BYTES}")
    if frame[0] != SCHEMA_VERSION:
        raise ProtocolError(
            f"message from a {sender} has schema version {frame[0]}, this process speaks {SCHEMA_VERSION}: "
            "run the same hybridflow version on every node"
        )
    try:
        return decoder.decode(memoryview(frame)[1:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"malformed message from a {sender} ({len(frame)} bytes): {error}") from error
