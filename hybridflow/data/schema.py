"""One row of the DocQA-RL-1.6K schema, and the checks that a value read from a file must pass to become one.

Columns (source: HF Tongyi-Zhiwen/DocQA-RL-1.6K): data_source, prompt, ability, reward_model, extra_info.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from hybridflow.data.template import Message
from hybridflow.errors import DataError

COLUMNS = ("data_source", "prompt", "ability", "reward_model", "extra_info")
ABILITIES = ("doc-qa", "doc-math", "doc-mc")


class RewardModel(msgspec.Struct, frozen=True, kw_only=True):
    """How a completion is judged."""

    style: str
    ground_truth: str
    """A full sentence ("Therefore, the answer is 6.45.") or the bare answer."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A question about a document, with its gold answer."""

    data_source: str
    """Where the row comes from; chooses the verifier, together with `ability`."""
    prompt: list[Message]
    """The conversation so far: most often one user message."""
    ability: str
    """doc-qa, doc-math or doc-mc."""
    reward_model: RewardModel
    extra_info: dict[str, Any]
    """Free for the maker of the data; the schema's own rows have `index` in it."""


def suggest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """' (did you mean X?)' for the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def parse_row(value: object, where: str) -> Row:
    """The checked row. `where` names file and row in errors. Raises DataError. Unknown columns are ignored."""
    if not isinstance(value, Mapping):
        _refuse(where, "(row)", value, "a row is an object with the columns " + ", ".join(COLUMNS))
    check_columns([str(column) for column in value], where)
    ability = _text(value["ability"], where, "ability")
    if ability not in ABILITIES:
        _refuse(where, "ability", ability, f"use one of {', '.join(ABILITIES)}{suggest(ability, ABILITIES)}")
    extra_info = value["extra_info"]
    if not isinstance(extra_info, Mapping):
        _refuse(where, "extra_info", extra_info, "use an object such as {'index': 0}")
    return Row(
        data_source=_text(value["data_source"], where, "data_source"),
        prompt=_messages(value["prompt"], where),
        ability=ability,
        reward_model=_reward_model(value["reward_model"], where),
        extra_info=dict(extra_info),
    )


def check_columns(found: list[str], where: str) -> None:
    """Raises DataError for the first missing column, with what is there instead."""
    for column in COLUMNS:
        if column not in found:
            spare = [name for name in found if name not in COLUMNS]
            near = difflib.get_close_matches(column, spare, n=1, cutoff=0.5)
            remedy = f"rename {near[0]!r} to {column!r}" if near else f"add column {column!r}"
            columns = ", ".join(found) or "none"
            raise DataError(f"{where}: column {column!r} is missing; found {columns}. Remedy: {remedy}")


def _refuse(where: str, column: str, value: object, remedy: str) -> NoReturn:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    raise DataError(f"{where}, column {column!r}: got {type(value).__name__} {shown}. Remedy: {remedy}")


def _text(value: object, where: str, column: str) -> str:
    if not isinstance(value, str) or not value.strip():
        _refuse(where, column, value, "use a non-empty string")
    return value


def _messages(value: object, where: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        _refuse(where, "prompt", value, "use a list of messages, each {'role': ..., 'content': ...}")
    messages: list[Message] = []
    for index, message in enumerate(value):
        column = f"prompt[{index}]"
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            _refuse(where, column, message, "use a message {'role': ..., 'content': ...}")
        content = _text(message["content"], where, f"{column}.content")
        _check_document(content, where, f"{column}.content")
        messages.append({"role": _text(message["role"], where, f"{column}.role"), "content": content})
    if all(message["role"] != "user" for message in messages):
        _refuse(where, "prompt", [message["role"] for message in messages], "give one message the role 'user'")
    return messages


def _check_document(content: str, where: str, column: str) -> None:
    start, stop = content.find("<text>"), content.rfind("</text>")
    if start >= 0 and stop > start and not content[start + len("<text>") : stop].strip():
        _refuse(where, column, content, "the document between <text> and </text> is empty: put it in, or drop the row")


def _reward_model(value: object, where: str) -> RewardModel:
    if not isinstance(value, Mapping):
        _refuse(where, "reward_model", value, "use an object {'style': 'rule', 'ground_truth': ...}")
    gold = value.get("ground_truth")
    if not isinstance(gold, str) or not gold.strip():
        remedy = "give the gold answer as a non-empty string; without one the row cannot be judged"
        _refuse(where, "reward_model.ground_truth", gold, remedy)
    return RewardModel(style=_text(value.get("style", "rule"), where, "reward_model.style"), ground_truth=gold)
