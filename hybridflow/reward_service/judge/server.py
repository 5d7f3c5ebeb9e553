"""One OpenAI-compatible server: a question goes out, an answer or a typed failure comes back."""

from __future__ import annotations

import email.utils
import ipaddress
import math
import os
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp

from hybridflow.config.judge_section import JudgeSection
from hybridflow.errors import RewardError
from hybridflow.reward_service.judge.response import Answer, MalformedResponse, read_response, show
from hybridflow.rewards.judge_prompt import JudgeMessage

NO_KEY = "none"
"""Sent as the key where the environment has none: some local servers insist on one, and take any."""

FailureKind = Literal["busy", "bad_request", "refused", "server_error", "timeout", "unreachable", "malformed"]
"""busy: 429. bad_request: this question will never pass there. refused: any other 4xx or a redirect, no question will.
malformed: not a chat completion."""
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


class EndpointClient:
    """The connections to one server; made and used within one event loop. RewardError where no header can hold its key.

    It speaks with that address alone: redirects are not followed, cookies not kept, `~/.netrc` is not read. Proxies of
    the environment (`https_proxy`, `no_proxy`) lead there unless it is this machine.
    """

    def __init__(self, url: str, section: JudgeSection) -> None:
        self.url = url
        self._section = section
        self._proxy = find_proxy(url)
        key = read_key(section)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # JudgeClient counts requests in flight
            timeout=aiohttp.ClientTimeout(total=section.request_timeout_s),
            headers={"Authorization": f"Bearer {key}"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # it would read ~/.netrc too
        )

    async def ask(self, messages: Sequence[JudgeMessage]) -> Answer:
        """The completion of these messages, at temperature 0 unless configured otherwise.

        Raises:
            AskError: there was none within `request_timeout_s`, or the server could not or would not give one.
        """
        address, body = f"{self.url}/chat/completions", _build_body(messages, self._section)
        try:
            async with self._session.post(address, json=body, proxy=self._proxy, allow_redirects=False) as response:
                content = await _read_body(self.url, response)
        except TimeoutError as error:
            limit_s = self._section.request_timeout_s
            raise AskError("timeout", f"{self.url}: no answer within {limit_s:g} s") from error
        except aiohttp.ClientError as error:
            raise AskError("unreachable", f"{self.url}: {type(error).__name__}: {show(str(error).encode())}") from error
        if response.status >= HTTPStatus.MULTIPLE_CHOICES:
            raise self._status_error(response, content)
        try:
            return read_response(content)
        except MalformedResponse as error:
            raise AskError("malformed", f"{self.url}: {error}") from error

    async def close(self) -> None:
        await self._session.close()

    def _status_error(self, response: aiohttp.ClientResponse, content: bytes) -> AskError:
        status, name = response.status, self._section.api_key_env
        why = f"{self.url}: HTTP {status}: {show(content)}"
        if status < HTTPStatus.BAD_REQUEST:
            target = show(response.headers.get("Location", "").encode())
            why = f"{self.url}: HTTP {status} to {target!r}, which is not followed: name the server's own address"
        elif status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            there = "is not accepted" if os.environ.get(name) else "is not set"
            why += f" (the key in the environment variable {name}, reward.judge.api_key_env, {there})"
        elif status in BAD_REQUEST:
            why += f" (sent with reward.judge.max_tokens = {self._section.max_tokens})"
        return AskError(_kind(status), why, read_retry_after_s(response.headers.get("Retry-After")))


def read_key(section: JudgeSection) -> str:
    """The key that is sent. Raises RewardError for one that no header can hold."""
    key = os.environ.get(section.api_key_env, "").strip()
    if any(not character.isprintable() for character in key):
        raise RewardError(
            f"the key in the environment variable {section.api_key_env}, reward.judge.api_key_env, holds a line break "
            f"or another control character. Remedy: export {section.api_key_env}=<the key alone>"
        )
    return key or NO_KEY


def read_retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or an HTTP date (RFC 9110, 10.2.3); None for neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        seconds = (at - (now or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def find_proxy(url: str) -> str | None:
    """The proxy that the environment names for an address; None for this machine and what `no_proxy` names."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if _is_this_machine(host) or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _build_body(messages: Sequence[JudgeMessage], section: JudgeSection) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": section.model,
        "messages": list(messages),
        section.length_field: section.max_tokens,
        "stream": False,
    }
    if section.temperature != "unset":
        body["temperature"] = section.temperature
    return body


async def _read_body(url: str, response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            raise AskError("malformed", f"{url}: an answer of more than {MAX_BODY_BYTES} bytes")
    return bytes(content)


def _kind(status: int) -> FailureKind:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "busy"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in TRANSIENT:
        return "server_error"
    return "bad_request" if status in BAD_REQUEST else "refused"
