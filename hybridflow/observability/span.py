"""The span that this process is in right now: the last span that it entered, for whoever asks from outside.

    enter("update, mini-batch 2 of 4")

A span is a line of text that changes when the process goes on to something else. Entering one is a sign of life.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback

import msgspec


class LifeSign(msgspec.Struct, frozen=True, kw_only=True):
    """A sign of life that a process gave of itself."""

    pid: int
    span: str
    number: int
    """Spans entered so far: it grows while the process goes on."""
    seconds: float
    """Since the last one was entered."""


_last: tuple[str, int, float] = ("starting", 0, time.monotonic())


def enter(span: str) -> None:
    """From now on this process is in `span`."""
    global _last
    _last = (span, _last[1] + 1, time.monotonic())


def life_sign(pid: int) -> LifeSign:
    """The last span of this process."""
    span, number, since = _last
    return LifeSign(pid=pid, span=span, number=number, seconds=time.monotonic() - since)


def stack_of_threads() -> str:
    """Where every thread of this process is but the one that asks, innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = [
        f"thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    ]
    return "\n".join(stacks)
