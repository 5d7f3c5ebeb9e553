"""Reads what a server sent as a chat completion. Pure.

Servers differ: content as a list of parts, token counts as floats or null, a byte order mark, `data:` lines of a stream
though none was asked for. All of these are read; what no completion can be taken from is `MalformedResponse`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from hybridflow.observability.visible import visible

STOP, LENGTH = "stop", "length"
"""Finish reasons: the model ended by itself, or at its limit."""
SHOWN_CHARS = 200
MAX_TOKENS = 10**9
"""No single answer has more; a server that says so has not counted."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_STREAM_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":")


class MalformedResponse(Exception):
    """A body that is no chat completion; the message says why, and shows its beginning."""


class Answer(msgspec.Struct, frozen=True):
    """Text of the model, how it ended, and the tokens that the server counted (0 where it did not say)."""

    text: str
    finish_reason: str
    """As the server says it; "stop" where a whole response does not say, "" where one says null or was cut off."""
    prompt_tokens: int
    completion_tokens: int

    @property
    def is_finished(self) -> bool:
        """Whether the model ended it by itself."""
        return self.finish_reason == STOP


def read_response(body: bytes) -> Answer:
    """The first choice of a chat completion. Raises MalformedResponse."""
    body = body.removeprefix(_BYTE_ORDER_MARK).strip()
    if body.startswith(_STREAM_STARTS):
        return _read_stream(body)
    response = _decode(body)
    if response.get("error"):
        raise MalformedResponse(f"an error: {show(body)}")
    choices = _read_choices(response)
    if not choices:
        raise MalformedResponse(f"a chat completion without choices: {show(body)}")
    messages = [message for choice in choices if isinstance(message := choice.get("message"), dict)]
    if len(messages) < len(choices):
        raise MalformedResponse(f"a chat completion without a message: {show(body)}")
    texts = {_read_content(message.get("content")) for message in messages}
    if len(texts) > 1:
        raise MalformedResponse(f"{len(choices)} choices that differ, where one was asked for: {show(body)}")
    choice = choices[0]
    reason = choice.get("finish_reason") if "finish_reason" in choice else STOP
    return _build(texts.pop(), _unless_declined(messages, reason), response.get("usage"))


def show(body: bytes) -> str:
    """Its beginning on one line, as it may be printed."""
    return visible(" ".join(body[:SHOWN_CHARS].decode("utf-8", "replace").split()), keep="")


def _read_stream(body: bytes) -> Answer:
    """Pieces of the first choice put together; one that has no finish reason was cut off."""
    pieces: list[str] = []
    messages: list[dict[str, Any]] = []
    reason: Any = None
    usage: Any = None
    for event in _events(body):
        usage = event.get("usage") or usage
        for choice in _read_choices(event)[:1]:
            if choice.get("index"):
                raise MalformedResponse("a stream of several choices, where one was asked for")
            piece = choice.get("delta") or choice.get("message")
            if isinstance(piece, dict):
                messages.append(piece)
                pieces.append(_read_content(piece.get("content")))
            reason = choice.get("finish_reason") or reason
    return _build("".join(pieces), _unless_declined(messages, reason), usage)


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    for line in body.splitlines():
        field, _, value = line.partition(b":")
        if field.strip() != b"data":
            continue
        if value.strip() == b"[DONE]":
            return
        event = _decode(value.strip())
        if event.get("error"):
            raise MalformedResponse(f"an error within a stream: {show(value)}")
        yield event


def _decode(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedResponse(f"not a chat completion: {error}; got {show(body)!r}") from error
    if not isinstance(value, dict):
        raise MalformedResponse(f"not a chat completion: got {show(body)!r}")
    return value


def _read_choices(response: dict[str, Any]) -> list[dict[str, Any]]:
    """None where one of them is no object."""
    choices = response.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        return []
    return choices


def _unless_declined(messages: Sequence[dict[str, Any]], reason: Any) -> Any:
    """The finish reason; another one for a model that refused, or that waits for a tool, whatever it says beside it."""
    for message in messages:
        if message.get("refusal") or _has_refusal(message.get("content")):
            return "refusal" if reason == STOP else reason
        if message.get("tool_calls") or message.get("function_call"):
            return "tool_calls" if reason == STOP else reason
    return reason


def _has_refusal(content: Any) -> bool:
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") == "refusal" for part in content
    )


def _read_content(content: Any) -> str:
    """Text, the texts of a list of parts (of thoughts and pictures none), or nothing for null."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise MalformedResponse(f"content is a {type(content).__name__}, neither text nor a list of parts")
    return "".join(_read_part(part) for part in content)


def _read_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise MalformedResponse(f"a part of the content is a {type(part).__name__}")
    if part.get("type", "text") not in ("text", "output_text"):
        return ""
    text = part.get("text")
    if not isinstance(text, str):
        raise MalformedResponse(f"a part of the content has a {type(text).__name__} for its text")
    return text


def _build(text: str, reason: Any, usage: Any) -> Answer:
    counts = usage if isinstance(usage, dict) else {}
    return Answer(
        text,
        reason if isinstance(reason, str) else "",
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
    )


def _count(number: Any) -> int:
    """A number of tokens; 0 for whatever is none."""
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    return int(number) if is_number and 0 <= number <= MAX_TOKENS else 0
