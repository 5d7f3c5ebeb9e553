"""One row of the DocQA-RL-1.6K schema, and the checks that a value read from a file must pass to become one.

Columns (source: HF Tongyi-Zhiwen/DocQA-RL-1.6K): data_source, prompt, ability, reward_model, extra_info.

Gold answers are read as people write them: a text, a number, or several of which any is right.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from hybridflow.data.chat_template import Message
from hybridflow.data.messages import read_messages, refuse
from hybridflow.data.naming import suggest
from hybridflow.errors import DataError
from hybridflow.reading import Unreadable, parse_json

_COLUMN = "reward_model.ground_truth"
_REMEDY = "give the gold answer as a non-empty string; without one the row cannot be judged"
_LIKE_LIST = re.compile(r"""\s*(\[\s*(["']).*\2\s*\]|\{\s*["']target["']\s*:.*\})\s*\Z""", re.DOTALL)


def read_golds(value: object, where: str) -> list[str]:
    """The golds as texts, at least one, none twice. Raises DataError naming place, value and remedy.

    A list means that any of them is right; so does verl's {"target": [...]}, and either as JSON in a text. A list of
    numbers in a text is an answer: [0, 1] may be an interval. A number is written out: 6.45, 1200.
    """
    if isinstance(value, str) and _LIKE_LIST.match(value):
        value = _read_listed(value, where)
    if isinstance(value, Mapping):
        if set(value) != {"target"}:
            refuse(where, _COLUMN, dict(value), 'use a string, a number, a list of them, or {"target": [...]}')
        value = value["target"]
    if isinstance(value, list):
        if not value:
            refuse(where, _COLUMN, value, _REMEDY)
        return list(dict.fromkeys(_read_gold(one, where, f"{_COLUMN}[{index}]") for index, one in enumerate(value)))
    return [_read_gold(value, where, _COLUMN)]


def _read_listed(text: str, where: str) -> Any:
    """The list of texts, or verl's object, that a text spells."""
    try:
        return parse_json(text)
    except Unreadable as error:
        refuse(where, _COLUMN, text, f"write the gold answers as JSON ({error}), or as a list and not as its text")


def _read_gold(value: object, where: str, column: str) -> str:
    if isinstance(value, bool):
        refuse(where, column, value, 'write the answer as a string, such as "yes"')
    if isinstance(value, int | Decimal):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            refuse(where, column, value, "give a finite number, or a string")
        return format(Decimal(repr(value)), "f")
    if not isinstance(value, str) or not value.strip():
        refuse(where, column, value, _REMEDY)
    return value


REQUIRED = ("data_source", "prompt", "ability", "reward_model")
COLUMNS = (*REQUIRED, "extra_info")
ABILITIES = ("doc-qa", "doc-math", "doc-mc")
_MOST_COMPARED, _MOST_SHOWN, _MOST_LETTERS = 1000, 40, 80
"""Bounds on the names of columns that an error is about: compared, shown, letters."""


class RewardModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a completion is judged."""

    style: str
    ground_truth: str
    """A full sentence ("Therefore, the answer is 6.45.") or the bare answer."""
    alternatives: list[str] = []
    """Further gold answers: any of them is right."""

    @property
    def golds(self) -> list[str]:
        """All."""
        return [self.ground_truth, *self.alternatives]


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


class BadRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row that cannot be used, in the place where it stands."""

    why: str
    """File, row, what is wrong, remedy."""


def parse_row(value: object, where: str) -> Row:
    """The checked row. `where` names file and row in errors. Raises DataError. Unknown columns are ignored."""
    if not isinstance(value, Mapping):
        refuse(where, "(row)", value, "a row is an object with the columns " + ", ".join(COLUMNS))
    check_columns([str(column) for column in value], where)
    ability = _text(value["ability"], where, "ability")
    if ability not in ABILITIES:
        refuse(where, "ability", ability, f"use one of {', '.join(ABILITIES)}{suggest(ability, ABILITIES)}")
    extra_info = {} if value.get("extra_info") is None else _unpacked(value["extra_info"])
    if not isinstance(extra_info, Mapping):
        refuse(where, "extra_info", extra_info, "use an object such as {'index': 0}, or leave it out")
    return Row(
        data_source=_text(value["data_source"], where, "data_source"),
        prompt=_read_prompt(value["prompt"], where),
        ability=ability,
        reward_model=_reward_model(value["reward_model"], where),
        extra_info=dict(extra_info),
    )


def to_record(row: Row) -> dict[str, Any]:
    """The row as it stands in a file."""
    record: dict[str, Any] = msgspec.to_builtins(row)
    if alternatives := record["reward_model"].pop("alternatives", None):
        record["reward_model"]["ground_truth"] = [row.reward_model.ground_truth, *alternatives]
    return record


def check_columns(found: Sequence[str], where: str) -> None:
    """Raises DataError that names all missing columns, what is there instead, and what makes rows of that."""
    missing = [column for column in REQUIRED if column not in found]
    if not missing:
        return
    spare = [name for name in found[:_MOST_COMPARED] if name not in COLUMNS]
    renamed = {column: difflib.get_close_matches(column, spare, n=1, cutoff=0.5) for column in missing}
    if all(renamed.values()):
        remedy = ", ".join(f"rename {near[0]!r} to {column!r}" for column, near in renamed.items())
    else:
        remedy = (
            f"add column {', '.join(map(repr, missing))}, or make rows of what is there: hybridflow data convert FILE "
            "--columns question=...,answer=...,document=... --output rows.parquet"
        )
    names = ", ".join(map(repr, missing))
    is_missing = f"column {names} is missing" if len(missing) == 1 else f"columns {names} are missing"
    raise DataError(f"{where}: {is_missing}; found {_list_names(found)}. Remedy: {remedy}")


def _list_names(found: Sequence[str]) -> str:
    """A row of somebody else may have a million names, or one of a million letters."""
    shown = [name if len(name) <= _MOST_LETTERS else f"{name[:_MOST_LETTERS]}..." for name in found[:_MOST_SHOWN]]
    more = f" and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
    return ", ".join(shown) + more if shown else "none"


def _text(value: object, where: str, column: str) -> str:
    if not isinstance(value, str) or not value.strip():
        refuse(where, column, value, "use a non-empty string")
    return value


def _read_prompt(value: object, where: str) -> list[Message]:
    messages = read_messages(value, where, "prompt")
    for index, message in enumerate(messages):
        _check_document(message["content"], where, f"prompt[{index}].content")
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        refuse(where, "prompt", roles, "give one message the role 'user'")
    if roles[-1] == "assistant":
        refuse(where, "prompt", roles, "end with what is to be answered: the answer itself is no part of the prompt")
    return messages


def _check_document(content: str, where: str, column: str) -> None:
    start, stop = content.find("<text>"), content.rfind("</text>")
    if start >= 0 and stop > start and not content[start + len("<text>") : stop].strip():
        refuse(where, column, content, "the document between <text> and </text> is empty: put it in, or drop the row")


def _unpacked(value: object) -> object:
    """An object that a column of texts holds as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return parse_json(value)
        except Unreadable:
            return value
    return value


def _reward_model(value: object, where: str) -> RewardModel:
    value = _unpacked(value)
    if not isinstance(value, Mapping):
        refuse(where, "reward_model", value, "use an object {'style': 'rule', 'ground_truth': ...}")
    golds = read_golds(value.get("ground_truth"), where)
    style = "rule" if value.get("style") is None else value["style"]
    return RewardModel(style=_text(style, where, "reward_model.style"), ground_truth=golds[0], alternatives=golds[1:])
