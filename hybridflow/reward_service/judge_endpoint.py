"""One OpenAI-compatible server: a question goes out, an answer or a typed failure comes back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Literal
from urllib.parse import urlsplit

import httpx
import msgspec
import openai

from hybridflow.config.judge_section import JudgeSection
from hybridflow.reward_service.judge_timing import read_retry_after_s
from hybridflow.rewards.judge_prompt import JudgeMessage

NO_KEY = "none"
"""Sent as the key where the environment has none: the client insists on one, local servers ignore it."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")

FailureKind = Literal["busy", "bad_request", "refused", "server_error", "timeout", "unreachable", "malformed"]
"""busy: 429. bad_request: this question will never pass there. refused: any other 4xx, no question will. malformed: not
a chat completion."""
BAD_REQUEST = (400, 413, 422)
TRANSIENT = (408, 409, 425)


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
    """The connection to one server; used within one event loop."""

    def __init__(self, url: str, section: JudgeSection) -> None:
        self.url = url
        self._section = section
        self._http = httpx.AsyncClient(
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=section.max_concurrency),
            trust_env=urlsplit(url).hostname not in LOOPBACK,  # a proxy does not lead to this machine
        )
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=os.environ.get(section.api_key_env) or NO_KEY,
            max_retries=0,  # JudgeClient does them, within the deadline of the verdict
            http_client=self._http,
        )

    async def ask(self, messages: Sequence[JudgeMessage]) -> Answer:
        """The completion of these messages at temperature 0.

        Raises:
            AskError: there was none within `request_timeout_s`, or the server could not or would not give one.
        """
        limit_s = self._section.request_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                # `post`, and not `chat.completions.create`, which spends a quarter of all time here on its types.
                response = await self._client.post(
                    "/chat/completions",
                    cast_to=httpx.Response,
                    body={
                        "model": self._section.model,
                        "messages": list(messages),
                        "temperature": 0.0,
                        "max_tokens": self._section.max_tokens,
                    },
                    options={"timeout": limit_s},
                )
        except (TimeoutError, openai.APITimeoutError) as error:
            raise AskError("timeout", f"{self.url}: no answer within {limit_s:g} s") from error
        except openai.APIStatusError as error:
            raise _status_error(self.url, error) from error
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise AskError("unreachable", f"{self.url}: {type(cause).__name__}: {cause}") from error
        return _read(self.url, response.content)

    async def close(self) -> None:
        await self._client.close()


def _status_error(url: str, error: openai.APIStatusError) -> AskError:
    status = error.status_code
    kind: FailureKind = "refused"
    if status == httpx.codes.TOO_MANY_REQUESTS:
        kind = "busy"
    elif status >= 500 or status in TRANSIENT:
        kind = "server_error"
    elif status in BAD_REQUEST:
        kind = "bad_request"
    why = f"{url}: HTTP {status}: {error.response.text[:200].strip()}"
    return AskError(kind, why, read_retry_after_s(error.response.headers.get("retry-after")))


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
