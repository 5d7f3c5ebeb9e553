"""The pipe between a reward worker and its scoring process: what the process is told at its start, and frames.

A frame is 4 bytes of length, one byte of kind, content. The first one to a process is its `Setup`: which code scores,
and what one item may cost.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

import msgspec

from hybridflow.config.reward_sections import RewardSection
from hybridflow.environment import named
from hybridflow.types import ScoreRequest, Verdict

Verify = Callable[[ScoreRequest], Verdict]

BUILD_RULES = "hybridflow.rewards.registry:build_verify"
"""For `Setup.build_verify`: the verifiers of `hybridflow.rewards`, imported by the scoring process alone."""
CHUNK_BYTES = 1 << 16
"""Read at a time: several requests of usual size."""
SETUP, REQUEST, READY, VERDICT, VERDICT_THEN_END, FAILED = range(6)
"""READY: verifiers are loaded. VERDICT_THEN_END: the process is not fit for another item. FAILED: a text, why it could
not start."""

_HEAD = struct.Struct("<IB")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on one item. Whatever goes above one costs that item its verdict, and nothing else."""

    cpu_s: float = 10.0
    """CPU seconds of the scoring process."""
    wall_s: float = 30.0
    """Seconds by the clock, for code that waits or is stopped; above `cpu_s`, as other processes use the cores too."""
    memory_mib: int = 4096
    """Address space of the scoring process: libraries included, of which many are mapped and never touched."""


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """The first frame to a scoring process."""

    build_verify: str
    """"module:function"; called once with `arguments`, it returns the function (ScoreRequest) -> Verdict."""
    arguments: dict[str, Any] = {}
    limits: Limits = Limits()
    environment: dict[str, str] = {}
    """Variables that verifiers need beside those that every process of a run gets."""


def rules_setup(section: RewardSection) -> Setup:
    """The setup that a run's configuration asks for: its rules and functions, within its limits."""
    return Setup(
        build_verify=BUILD_RULES,
        arguments=section.model_dump(include={"rules", "functions", "module_folders"}),
        limits=Limits(
            cpu_s=section.cpu_limit_s, wall_s=section.item_timeout_s, memory_mib=int(section.memory_limit_gib * 1024)
        ),
        environment=named(section.environment, "reward.environment"),
    )


def write_frame(kind: int, content: bytes) -> bytes:
    """One frame as bytes."""
    return _HEAD.pack(len(content), kind) + content


class FrameReader:
    """Reads frames from a stream socket."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._chunk = bytearray(CHUNK_BYTES)  # kept: a new one each time is new memory each time
        self._buffer = bytearray()

    def read(self) -> list[tuple[int, bytes]] | None:
        """(kind, content) of each frame that one read completes; None: the other end is closed.

        Raises what `recv` raises: BlockingIOError or TimeoutError where nothing is there, ConnectionResetError.
        """
        num_bytes = self._channel.recv_into(self._chunk)
        if not num_bytes:
            return None
        frames: list[tuple[int, bytes]] = []
        with memoryview(self._chunk) as chunk:
            self._buffer += chunk[:num_bytes]
        start = 0
        with memoryview(self._buffer) as buffer:
            while len(buffer) - start >= _HEAD.size:
                length, kind = _HEAD.unpack_from(buffer, start)
                end = start + _HEAD.size + length
                if len(buffer) < end:
                    break
                frames.append((kind, bytes(buffer[start + _HEAD.size : end])))
                start = end
        del self._buffer[:start]
        return frames
