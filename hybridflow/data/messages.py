"""Conversations as people write them, as the list of messages that chat templates take.

| given                                                        | read as                              |
|--------------------------------------------------------------|--------------------------------------|
| [{"role": "user", "content": "..."}]                         | itself                               |
| content [{"type": "text", "text": "..."}, ...]               | the texts, joined by line ends       |
| [{"from": "human", "value": "..."}] (ShareGPT)               | user; "gpt" is assistant             |
| "reasoning_content" (or "reasoning", "thinking") beside it   | <think> before an assistant's answer |
| {"role": "user", "content": "..."}                           | a list of it                         |
| "..."                                                        | one message of the user              |
| "[{\\"role\\": ...}]" (either as JSON in a text)               | what it says                         |

What a message says beside its role, content and thought, and what would be lost, is refused: calls of tools, a weight
of 0. So is a text that begins like such a list and is no JSON, as Python's `str(messages)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from hybridflow.data.chat_template import Message
from hybridflow.data.naming import suggest
from hybridflow.errors import DataError
from hybridflow.reading import Unreadable, parse_json

ROLES = ("system", "developer", "user", "assistant", "tool")
_OWN_ROLES = {role: role for role in ROLES}
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"} | _OWN_ROLES
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
CALLS = ("tool_calls", "function_call")
LEARNT = ("weight", "loss", "train")
"""Names under which other trainers are told whether a message is learnt."""
_SHAPE = "{'role': ..., 'content': ...}"
_ROLE = rf"""["'](?:role|from)["']\s*:\s*["'](?:{"|".join(SHAREGPT_ROLES)})["']"""
_LIKE_MESSAGES = re.compile(rf"""\s*(?:\[\s*\{{\s*{_ROLE}|(?:\[\s*)?\{{.*{_ROLE}.*\}}\s*\]?\s*\Z)""", re.DOTALL)
"""The text of a list of messages, whole or cut off, or of a message."""


def read_messages(value: object, where: str, column: str) -> list[Message]:
    """The checked messages, at least one. Raises DataError naming place, value and remedy."""
    if isinstance(value, str):
        value = _read_text(value, where, column)
    if isinstance(value, Mapping) and _names_role(value):
        value = [value]
    if not isinstance(value, list) or not value:
        refuse(where, column, value, f"use a text, or a list of messages, each {_SHAPE}")
    return [_read_message(message, where, f"{column}[{index}]") for index, message in enumerate(value)]


def spells_messages(text: str) -> bool:
    """Whether a text is a conversation written out, as JSON or as another language prints it."""
    return _LIKE_MESSAGES.match(text) is not None


def refuse(where: str, column: str, value: object, remedy: str) -> NoReturn:
    """Raises DataError."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    raise DataError(f"{where}, column {column!r}: got {type(value).__name__} {shown}. Remedy: {remedy}")


def _read_text(text: str, where: str, column: str) -> Any:
    """The messages that a text is the JSON of, or the text as the user's."""
    value: Any = None
    if text.lstrip()[:1] in ("[", "{"):
        try:
            value = parse_json(text)
        except Unreadable as error:
            if spells_messages(text):
                refuse(where, column, text, f"write the messages as JSON ({error}), or as a list and not as its text")
    if isinstance(value, list) and value and all(isinstance(one, dict) and _names_role(one) for one in value):
        return value
    if isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()):
        return [value]
    return [{"role": "user", "content": text}]


def _names_role(message: Mapping[Any, Any]) -> bool:
    return "role" in message or "from" in message


def _read_message(message: object, where: str, column: str) -> Message:
    is_sharegpt = isinstance(message, Mapping) and "role" not in message and {"from", "value"} <= message.keys()
    names, known = (("from", "value"), SHAREGPT_ROLES) if is_sharegpt else (("role", "content"), _OWN_ROLES)
    if not isinstance(message, Mapping) or not set(names) <= message.keys():
        refuse(where, column, message, f"use a message {_SHAPE}")
    _refuse_lost(message, where, column)
    role = _read_role(message[names[0]], known, where, f"{column}.{names[0]}")
    content = _read_content(message[names[1]], where, f"{column}.{names[1]}")
    if role == "assistant" and (thought := _read_thought(message, where, column)) and "</think>" not in content:
        content = f"<think>\n{thought}\n</think>\n\n{content.lstrip()}"
    return {"role": role, "content": content}


def _refuse_lost(message: Mapping[Any, Any], where: str, column: str) -> None:
    """Refuse fields that nobody here reads and that would change the meaning."""
    for name in CALLS:
        if message.get(name):
            refuse(where, f"{column}.{name}", message[name], "write the call into the content, as the model is to")
    for name in LEARNT:
        if message.get(name) is not None and not message[name]:
            refuse(
                where, f"{column}.{name}", message[name], "every answer is learnt: drop the row, or end it before it"
            )


def _read_thought(message: Mapping[Any, Any], where: str, column: str) -> str:
    thought = next((message[name] for name in THOUGHTS if message.get(name)), "")
    if not isinstance(thought, str):
        refuse(where, column, thought, "write what an assistant thought as a string")
    return thought.strip()


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
