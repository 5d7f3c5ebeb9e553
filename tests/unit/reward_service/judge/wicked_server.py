"""A server on the loopback that sends exactly the bytes it is told: one script for each case.

A request names its case by the text "case-<name>." anywhere in its body.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.bench.judge_server import JudgeServer

HANG = b"<hang>"
"""In a script: nothing more is sent, and the connection stays open."""
YES_TEXT, NO_TEXT = "Both name the city.\n[[YES]]", "They differ.\n[[NO]]"


def http(body: bytes | str, status: str = "200 OK", headers: str = "", length: int | None = None) -> bytes:
    """A whole response."""
    data = body.encode() if isinstance(body, str) else body
    size = len(data) if length is None else length
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n{headers}\r\n"
    return head.encode() + data


def chat(content: Any, **choice: Any) -> str:
    """A chat completion as JSON; `choice` adds to, or replaces, what stands in the first choice."""
    first = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"} | choice
    return json.dumps({"id": "1", "choices": [first], "usage": {"prompt_tokens": 9, "completion_tokens": 3}})


def stream(*pieces: str, reason: str | None = "stop", done: bool = True) -> str:
    """The same as `data:` lines."""
    events = [json.dumps({"choices": [{"index": 0, "delta": {"content": piece}}]}) for piece in pieces]
    if reason is not None:
        events.append(json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}))
    return "".join(f"data: {event}\n\n" for event in events + ["[DONE]"] * done)


class WickedServer(JudgeServer):
    """Plays `scripts[name]` to each request of that case, and counts them."""

    def __init__(self, scripts: Mapping[str, bytes]) -> None:
        super().__init__()
        self.scripts = scripts
        self.asked: Counter[str] = Counter()
        self.told: dict[str, list[str]] = {}
        """By case, the bodies that were sent for it."""

    async def _answer(self, request: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = request.rpartition("case-")[2].partition(".")[0]
        self.asked[name] += 1
        self.told.setdefault(name, []).append(request)
        sent, hangs, _ = self.scripts[name].partition(HANG)
        writer.write(sent)
        await writer.drain()
        if hangs:
            await reader.read()
        writer.close()


@contextmanager
def serving(scripts: Mapping[str, bytes]) -> Iterator[WickedServer]:
    server = WickedServer(scripts)
    with server.serving():
        yield server
