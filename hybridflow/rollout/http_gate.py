"""What SGLang's HTTP server lets in: three paths, to those who know the key, and no web page.

SGLang serves its administration beside its answers (weights, files of logs, pauses), to anybody, and allows every web
page to read what it says. This middleware stands before all of that. It is an ASGI application around another one, as
any web framework takes it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

SERVED = {"/v1/chat/completions": "POST", "/v1/models": "GET", "/health": "GET"}
"""Method by path. /health needs no key: it says whether one token can be generated, and no more."""
OPEN = frozenset({"/health"})
OWN_CALLS = {"/freeze_gc": "POST"}
"""What SGLang asks of itself when it has started, with its key of administration."""
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
