"""Messages as bytes: a frame is one byte of schema version, then a msgpack array of at least one message. No pickle.

Several messages share a frame because a frame costs far more than a message: a wake-up, system calls, the interpreter
lock. A frame that is empty, of another version, too large, cut off, or not exactly of the expected types is a
ProtocolError: a foreign message can only be refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, TypeVar

import msgspec

from hybridflow.errors import ProtocolError
from hybridflow.wire.messages import FromEngine, FromWorker, Message, ToEngine, ToWorker

SCHEMA_VERSION = 3
"""Raised by one whenever a message or a record in it changes."""

MAX_FRAME_BYTES = 64 * 2**20
"""A completion of 120K tokens is about 2 MiB; whatever is above this bound was not sent by an engine of ours."""

MAX_BATCH_BYTES = 120 * 2**10
"""Messages share a frame up to this size. From 128 KiB on, the C library takes fresh, zeroed pages for each copy."""

_T = TypeVar("_T")
_SomeOf = Annotated[list[_T], msgspec.Meta(min_length=1)]
_encoder = msgspec.msgpack.Encoder()
_from_worker: msgspec.msgpack.Decoder[list[FromWorker]] = msgspec.msgpack.Decoder(_SomeOf[FromWorker])
_from_engine: msgspec.msgpack.Decoder[list[FromEngine]] = msgspec.msgpack.Decoder(_SomeOf[FromEngine])
_to_engine: msgspec.msgpack.Decoder[list[ToEngine]] = msgspec.msgpack.Decoder(_SomeOf[ToEngine])
_to_worker: msgspec.msgpack.Decoder[list[ToWorker]] = msgspec.msgpack.Decoder(_SomeOf[ToWorker])


def encode(*messages: Message) -> bytes:
    """The frame of these messages; ProtocolError as `join`."""
    return join([encode_message(message) for message in messages])


def encode_message(message: Message) -> bytes:
    """One message, for `join`.

    Raises:
        ProtocolError: its frame would be above MAX_FRAME_BYTES; the receiver would refuse it, so it is refused here.
    """
    body = _encoder.encode(message)
    if len(body) + _HEAD_BYTES > MAX_FRAME_BYTES:
        raise ProtocolError(
            f"{type(message).__name__} message has {len(body)} bytes, above the limit of {MAX_FRAME_BYTES}"
        )
    return body


def join(bodies: list[bytes]) -> bytes:
    """The frame of 1 to 65,535 messages from `encode_message`."""
    # Written by hand, as the bodies are msgpack already: the head of an array of 16 bits length.
    return b"".join((_HEAD, len(bodies).to_bytes(2, "big"), *bodies))


def split(bodies: Iterable[bytes]) -> list[list[bytes]]:
    """The same in the same order, cut into lists that make a frame of at most MAX_BATCH_BYTES, or one message each."""
    batches: list[list[bytes]] = []
    room = 0
    for body in bodies:
        if len(body) > room:
            batches.append([])
            room = MAX_BATCH_BYTES
        batches[-1].append(body)
        room -= len(body)
    return batches


def decode_from_worker(frame: bytes | memoryview) -> list[FromWorker]:
    """Ready, ScoreReply or Bye; ProtocolError on anything else."""
    return _decode(frame, _from_worker, "reward worker")


def decode_from_engine(frame: bytes | memoryview) -> list[FromEngine]:
    """Finished or Hello; ProtocolError on anything else."""
    return _decode(frame, _from_engine, "rollout engine")


def decode_to_engine(frame: bytes | memoryview) -> list[ToEngine]:
    """Accepted; ProtocolError on anything else."""
    return _decode(frame, _to_engine, "reward stream")


def decode_to_worker(frame: bytes | memoryview) -> list[ToWorker]:
    """Work or Stop; ProtocolError on anything else."""
    return _decode(frame, _to_worker, "reward stream")


_HEAD = bytes([SCHEMA_VERSION, 0xDC])
_HEAD_BYTES = len(_HEAD) + 2


def _decode(frame: bytes | memoryview, decoder: msgspec.msgpack.Decoder[_T], sender: str) -> _T:
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
