"""An OpenAI-compatible server on the loopback that knows every answer and misbehaves as it is told.

In a thread (`serving`), in a process of its own (`serving_apart`), or in the event loop of its user (`start`).

It answers [[YES]] where the question has a word in it, "agrees" unless told otherwise, else [[NO]]. No library of HTTP:
what it does wrong on the wire is done on purpose.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

RIGHT, BUSY, ERROR, NEVER, GARBAGE = "right", "busy", "error", "never", "garbage"
UNREADABLE, WRONG, BAD_REQUEST = "unreadable", "wrong", "bad_request"
FAULTY_TWENTY = [BUSY] * 4 + [ERROR, NEVER, GARBAGE] + [RIGHT] * 13
"""20% 429, 5% 500, 5% never, 5% garbage, of each twenty requests."""
_GARBAGE = [
    b"<html>gateway</html>",
    b'{"choices": []}',
    json.dumps({"choices": [{"message": {"content": "I think YES."}}]}).encode(),
    json.dumps({"choices": [{"message": {"content": "[[NO]] or rather [[YES]]"}}]}).encode(),
    b'{"choices": [{"message": {"content": null}}]}',
    b"",
]
_STATUS = {BUSY: 429, ERROR: 500, BAD_REQUEST: 400}


@dataclass
class JudgeServer:
    """Behaviour of the next requests: one of `plan` each, shuffled again by `seed` whenever it is used up."""

    plan: list[str] = field(default_factory=lambda: [RIGHT])
    delay_s: tuple[float, float] = (0.0, 0.0)
    """Shortest and longest time until an answer, right or garbage; refusals are immediate."""
    retry_after: str | None = None
    agreeing: str = "agrees"
    """Word in a request that makes the right answer YES."""
    seed: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    bodies: list[str] = field(default_factory=list)
    """The requests, as they came."""
    keys: list[str] = field(default_factory=list)
    """Authorization headers."""
    heads: list[str] = field(default_factory=list)
    """All headers of each request."""
    most_in_flight: int = 0
    pauses_after_busy_s: list[float] = field(default_factory=list)
    """From each refusal of a body to the next request with the same one."""
    url: str = ""

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._in_flight = 0
        self._garbage = itertools.cycle(_GARBAGE)
        self._next: list[str] = []
        self._refused_at: dict[str, float] = {}

    def behave(self, plan: list[str]) -> None:
        """Another plan from now on."""
        self.plan, self._next = plan, []

    def agrees(self, request: str) -> bool:
        """Whether the right answer to this body is YES."""
        return self.agreeing in request

    async def start(self) -> asyncio.Server:
        """Serves in the running event loop, until what it returns is closed."""
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        return server

    @contextmanager
    def serving(self) -> Iterator[JudgeServer]:
        """Runs in a thread of its own until the block ends."""
        ready, loop = threading.Event(), asyncio.new_event_loop()

        async def serve() -> None:
            await self.start()
            ready.set()

        def run() -> None:
            asyncio.set_event_loop(loop)
            loop.create_task(serve())
            loop.run_forever()
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        ready.wait()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (received := await _read_request(reader)) is not None:
                request, key, head = received
                self.bodies.append(request)
                self.keys.append(key)
                self.heads.append(head)
                await self._answer(request, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.counts["disconnected"] += 1
        except asyncio.CancelledError:
            return  # the server ends; asyncio.streams would print this
        finally:
            writer.close()

    async def _answer(self, request: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            kind = self._next_kind()
            self.counts[kind] += 1
            now = asyncio.get_running_loop().time()
            if request in self._refused_at:
                self.pauses_after_busy_s.append(now - self._refused_at.pop(request))
            if kind == BUSY:
                self._refused_at[request] = now
            if kind == NEVER:
                await reader.read()  # until the client hangs up
                return
            if kind in _STATUS:
                await _send(writer, _STATUS[kind], b'{"error": {"message": "not now"}}', self.retry_after)
                return
            await asyncio.sleep(self._rng.uniform(*self.delay_s))
            answer = next(self._garbage) if kind == GARBAGE else _answer(self.agrees(request), kind)
            await _send(writer, 200, answer, None)
        finally:
            self._in_flight -= 1

    def _next_kind(self) -> str:
        if not self._next:
            self._next = self._rng.sample(self.plan, len(self.plan))
        return self._next.pop()


@dataclass
class ServerApart:
    """A server in another process."""

    url: str
    counts: dict[str, int] = field(default_factory=dict)
    """Once it has ended, and so is the next."""
    most_in_flight: int = 0


@contextmanager
def serving_apart(**options: Any) -> Iterator[ServerApart]:
    """`JudgeServer(**options)` in a process of its own, so that it takes no time from the client's."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_apart, args=(theirs, options), daemon=True)
    process.start()
    server = ServerApart(ours.recv())
    try:
        yield server
    finally:
        ours.send("end")
        server.counts, server.most_in_flight = ours.recv()
        process.join()


def _serve_apart(channel: Connection, options: dict[str, Any]) -> None:
    with JudgeServer(**options).serving() as server:
        channel.send(server.url)
        channel.recv()
    channel.send((dict(server.counts), server.most_in_flight))


def _answer(agrees: bool, kind: str) -> bytes:
    verdict = "[[YES]]" if agrees == (kind == RIGHT) else "[[NO]]"
    content = "Who knows." if kind == UNREADABLE else f"Compared word by word.\n{verdict}"
    message = {"role": "assistant", "content": content}
    usage = {"prompt_tokens": 200, "completion_tokens": 10, "total_tokens": 210}
    return json.dumps({"id": "1", "choices": [{"index": 0, "message": message}], "usage": usage}).encode()


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, str, str] | None:
    """Body, Authorization header and head of the next request; None where the client is gone."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    text = head.decode("latin-1")
    lines = (line.partition(":") for line in text.split("\r\n"))
    headers = {name.lower(): value.strip() for name, _, value in lines}
    body = await reader.readexactly(int(headers["content-length"]))
    return body.decode(), headers.get("authorization", ""), text


async def _send(writer: asyncio.StreamWriter, status: int, body: bytes, retry_after: str | None) -> None:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    if retry_after is not None and status == 429:
        head += f"Retry-After: {retry_after}\r\n"
    writer.write(f"{head}\r\n".encode() + body)
    await writer.drain()
