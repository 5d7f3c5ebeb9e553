"""SGLang's own HTTP server as a process, behind a gate: `python -m hybridflow.rollout.engine.http_server`.

Its input is JSON: `{"arguments": {ServerArgs fields}, "key": "..."}`. Not on the command line, which every user of the
machine can read. SGLang serves its administration beside its answers (weights, files of logs, pauses), to anybody, and
allows every web page to read what it says: `HttpGate`, an ASGI application around SGLang's, lets in three paths, for
those who know the key, and no web page.

`sglang.launch_server` takes command line options and no fields; the fields are what `rollout/cpu`
gives.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from hybridflow.rollout.engine.signed_broadcast import check_signed

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

SERVED = {"/v1/chat/completions": "POST", "/v1/models": "GET", "/health": "GET"}
"""Method by path. /health needs no key: it says whether one token can be generated, and no more."""
OPEN = frozenset({"/health"})
OWN_CALLS = {"/freeze_gc": "POST"}
"""Paths that SGLang asks of itself when it has started, with its key of administration."""
_DROPPED_HEADERS = frozenset({b"origin", b"access-control-request-method", b"access-control-request-headers"})
"""Without them nothing behind this allows another origin to read an answer."""


class HttpGate:
    """Lets through what is served and carries the key; all else gets 404, 405 or 401 before its body is read.

    Args:
        key: Of those who ask: `Authorization: Bearer <key>`.
        own_key: Of the server itself, for OWN_CALLS.
    """

    def __init__(self, app: App, key: str, own_key: str) -> None:
        self._app = app
        self._key = key
        self._own_key = own_key

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope) if scope["type"] == "http" else (404, "only HTTP is served here")
        if refusal is None:
            headers = [(name, value) for name, value in scope["headers"] if name.lower() not in _DROPPED_HEADERS]
            await self._app({**scope, "headers": headers}, receive, send)
        elif scope["type"] == "http":
            await _refuse(send, *refusal)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        """Status and reason; None for what is let through."""
        path, method = scope["path"], scope["method"]
        told = next((value for name, value in scope["headers"] if name.lower() == b"authorization"), b"")
        if OWN_CALLS.get(path) == method and _has_key(told, self._own_key):
            return None
        if path not in SERVED:
            return 404, f"served here: {', '.join(SERVED)}"
        if method != SERVED[path]:
            return 405, f"{path} takes {SERVED[path]}"
        if path not in OPEN and not _has_key(told, self._key):
            return 401, "the key is missing or wrong: send Authorization: Bearer <key>"
        return None


def _has_key(authorization: bytes, key: str) -> bool:
    scheme, _, told = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and secrets.compare_digest(told.strip(), key.encode())


async def _refuse(send: Send, status: int, why: str) -> None:
    body = json.dumps({"error": {"message": why, "code": status}}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the body of the request was not read
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main(arguments: dict[str, Any], key: str) -> None:
    """Serves until SIGTERM or SIGINT, and leaves no process behind."""
    from hybridflow.rollout.cpu.process_server import start_server
    from megatron_ext.platform.device import find_device

    if not find_device().has_cuda:
        start_server()
    from sglang.srt.plugins import load_plugins

    load_plugins()  # before ServerArgs: a plugin may change it
    check_signed()
    from sglang.srt.entrypoints.http_server import app, launch_server
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils import kill_process_tree

    own_key = secrets.token_urlsafe(32)
    app.add_middleware(HttpGate, key=key, own_key=own_key)
    try:
        launch_server(ServerArgs(**arguments, admin_api_key=own_key))
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main(**json.load(sys.stdin))
