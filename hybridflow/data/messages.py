"""Conversations as people write them, as the list of messages that chat templates take.

| given                                                        | read as                              |
|--------------------------------------------------------------|--------------------------------------|
| [{"role": "user", "content": "..."}]                         | itself                               |
| content [{"type": "text", "text": "..."}, ...]               | the texts, joined by line ends       |
| [{"from": "human", "value": "..."}] (ShareGPT)               | user; "gpt" is assistant             |
| "reasoning_content" (or "reasoning", "thinking") beside it   | <think> before an assistant's answer |
| "..."                                                        | one message of the user              |
| "[{\\"role\\": ...}]" (the list as JSON in a text)             | that list                            |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from hybridflow.data.naming import suggest
from hybridflow.data.template import Message
from hybridflow.errors import DataError
from hybridflow.reading import Unreadable, parse_json

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"} | {role: role for role in ROLES}
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_SHAPE = "{'role': ..., 'content': ...}"


def read_messages(value: object, where: str, column: str) -> list[Message]:
    """The checked messages, at least one. Raises DataError naming place, value and remedy."""
    if isinstance(value, str):
        value = _listed(value) or [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        refuse(where, column, value, f"use a text, or a list of messages, each {_SHAPE}")
    return [_read_message(message, where, f"{column}[{index}]") for index, message in enumerate(value)]


def refuse(where: str, column: str, value: object, remedy: str) -> NoReturn:
    """Raises DataError."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    raise DataError(f"{where}, column {column!r}: got {type(value).__name__} {shown}. Remedy: {remedy}")


def _listed(text: str) -> list[Any] | None:
    """The messages that a text is the JSON of; None for a text that only begins like them."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = parse_json(text)
    except Unreadable:
        return None
    is_listed = isinstance(value, list) and value and all(isinstance(one, dict) and _names_role(one) for one in value)
    return value if is_listed else None


def _names_role(message: Mapping[Any, Any]) -> bool:
    return "role" in message or "from" in message


def _read_message(message: object, where: str, column: str) -> Message:
    if isinstance(message, Mapping) and "role" not in message and {"from", "value"} <= message.keys():
        return {
            "role": _read_role(message["from"], SHAREGPT_ROLES, where, f"{column}.from"),
            "content": _read_content(message["value"], where, f"{column}.value"),
        }
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        refuse(where, column, message, f"use a message {_SHAPE}")
    role = _read_role(message["role"], {role: role for role in ROLES}, where, f"{column}.role")
    content = _read_content(message["content"], where, f"{column}.content")
    thought = next((message[name] for name in THOUGHTS if message.get(name)), None) if role == "assistant" else None
    if thought is not None and "</think>" not in content:
        if not isinstance(thought, str):
            refuse(where, column, thought, "write what an assistant thought as a string")
        content = f"<think>\n{thought.strip()}\n</think>\n\n{content.lstrip()}"
    return {"role": role, "content": content}


def _read_role(value: object, known: dict[str, str], where: str, column: str) -> str:
    if not isinstance(value, str) or value not in known:
        hint = suggest(value.lower(), tuple(known)) if isinstance(value, str) else ""
        refuse(where, column, value, f"use one of {', '.join(known)}{hint}")
    return known[value]


def _read_content(value: object, where: str, column: str) -> str:
    if isinstance(value, list):
        value = "\n".join(_read_part(part, where, f"{column}[{index}]") for index, part in enumerate(value))
    if not isinstance(value, str) or not value.strip():
        refuse(where, column, value, "use a non-empty string")
    return value


def _read_part(part: object, where: str, column: str) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
    if not isinstance(text, str):
        refuse(where, column, part, "use parts {'type': 'text', 'text': ...}; nothing else is read")
    return text
