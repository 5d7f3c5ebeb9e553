"""Messages as bytes: one byte of schema version, then msgpack. No pickle: a foreign message can only be refused.

A frame that is empty, of another version, too large, cut off, or not exactly of the expected types is a ProtocolError.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from hybridflow.errors import ProtocolError
from hybridflow.wire.messages import FromEngine, FromWorker, Message, ToEngine, ToWorker

SCHEMA_VERSION = 3
"""Raised by one whenever a message or a record in it changes."""

MAX_FRAME_BYTES = 64 * 2**20
"""A completion of 120K tokens is about 2 MiB; whatever is above this bound was not sent by an engine of ours."""

_T = TypeVar("_T")
_encoder = msgspec.msgpack.Encoder()
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)


def encode(message: Message) -> bytes:
    """The frame of one message.

    Raises:
        ProtocolError: the frame would be above MAX_FRAME_BYTES; the receiver would refuse it, so it is refused here.
    """
    frame = bytes([SCHEMA_VERSION]) + _encoder.encode(message)
    if len(frame) > MAX_FRAME_BYTES:
        raise ProtocolError(
            f"{type(message).__name__} message has {len(frame)} bytes, above the limit of {MAX_FRAME_BYTES}"
        )
    return frame


def decode_from_worker(frame: bytes) -> FromWorker:
    """Ready, ScoreReply or Bye; ProtocolError on anything else."""
    return _decode(frame, _from_worker, "reward worker")


def decode_from_engine(frame: bytes) -> FromEngine:
    """Finished or Hello; ProtocolError on anything else."""
    return _decode(frame, _from_engine, "rollout engine")


def decode_to_engine(frame: bytes) -> ToEngine:
    """Accepted; ProtocolError on anything else."""
    return _decode(frame, _to_engine, "reward stream")


def decode_to_worker(frame: bytes) -> ToWorker:
    """Work or Stop; ProtocolError on anything else."""
    return _decode(frame, _to_worker, "reward stream")


def _decode(frame: bytes, decoder: msgspec.msgpack.Decoder[_T], sender: str) -> _T:
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
