"""One OpenAI-compatible server: a question goes out, an answer or a typed failure comes back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from http import HTTPStatus
from typing import Literal
from urllib.parse import urlsplit

import aiohttp
import msgspec

from hybridflow.config.judge_section import JudgeSection
from hybridflow.reward_service.judge_timing import read_retry_after_s
from hybridflow.rewards.judge_prompt import JudgeMessage

NO_KEY = "none"
"""Sent as the key where the environment has none: some local servers insist on one, and take any."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")

FailureKind = Literal["busy", "bad_request", "refused", "server_error", "timeout", "unreachable", "malformed"]
"""busy: 429. bad_request: this question will never pass there. refused: any other 4xx, no question will. malformed: not
a chat completion."""
BAD_REQUEST = (400, 413, 422)
TRANSIENT = (408, 409, 425)
MAX_BODY_BYTES = 4 * 2**20
"""An explanation and a verdict are a few KiB; whatever sends more than this is no judge."""


class AskError(Exception):
    """A question that got no answer; `why` is written for a user."""

    def __init__(self, kind: FailureKind, why: str, retry_after_s: float | None = None) -> None:
        super().__init__(why)
        self.kind: FailureKind = kind
        self.why = why
        self.retry_after_s = retry_after_s


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Response(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


class Answer(msgspec.Struct, frozen=True):
    """What the model wrote, and the tokens that the server counted (0 where it did not say)."""

    text: str
    was_cut_off: bool
    """It ended at its token limit."""
    prompt_tokens: int
    completion_tokens: int


class EndpointClient:
    """The connections to one server; made and used within one event loop."""

    def __init__(self, url: str, section: JudgeSection) -> None:
        self.url = url
        self._section = section
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # JudgeClient counts requests in flight
            timeout=aiohttp.ClientTimeout(total=section.request_timeout_s),
            headers={"Authorization": f"Bearer {os.environ.get(section.api_key_env) or NO_KEY}"},
            trust_env=urlsplit(url).hostname not in LOOPBACK,  # a proxy does not lead to this machine
        )

    async def ask(self, messages: Sequence[JudgeMessage]) -> Answer:
        """The completion of these messages at temperature 0.

        Raises:
            AskError: there was none within `request_timeout_s`, or the server could not or would not give one.
        """
        body = {
            "model": self._section.model,
            "messages": list(messages),
            "temperature": 0.0,
            "max_tokens": self._section.max_tokens,
        }
        try:
            async with self._session.post(f"{self.url}/chat/completions", json=body) as response:
                content = await _read_body(self.url, response)
        except TimeoutError as error:
            limit_s = self._section.request_timeout_s
            raise AskError("timeout", f"{self.url}: no answer within {limit_s:g} s") from error
        except aiohttp.ClientError as error:
            raise AskError("unreachable", f"{self.url}: {type(error).__name__}: {error}") from error
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise _status_error(self.url, response.status, content, response.headers.get("Retry-After"))
        return _read(self.url, content)

    async def close(self) -> None:
        await self._session.close()


async def _read_body(url: str, response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            raise AskError("malformed", f"{url}: an answer of more than {MAX_BODY_BYTES} bytes")
    return bytes(content)


def _status_error(url: str, status: int, content: bytes, retry_after: str | None) -> AskError:
    kind: FailureKind = "refused"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "busy"
    elif status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in TRANSIENT:
        kind = "server_error"
    elif status in BAD_REQUEST:
        kind = "bad_request"
    shown = content[:200].decode("utf-8", "replace").strip()
    return AskError(kind, f"{url}: HTTP {status}: {shown}", read_retry_after_s(retry_after))


def _read(url: str, body: bytes) -> Answer:
    try:
        response = msgspec.json.decode(body, type=_Response)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        shown = body[:100].decode("utf-8", "replace")
        raise AskError("malformed", f"{url}: not a chat completion: {error}; got {shown!r}") from error
    if not response.choices:
        raise AskError("malformed", f"{url}: a chat completion without choices")
    usage, choice = response.usage or _Usage(), response.choices[0]
    return Answer(
        choice.message.content or "", choice.finish_reason == "length", usage.prompt_tokens, usage.completion_tokens
    )
