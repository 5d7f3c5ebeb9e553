"""What a model has to write, after the generation prompt, to have given an answer.

Chat templates of reasoning models do not write an answer back as the model gave it: they drop the thinking of earlier
turns, and some open `<think>` in the generation prompt alone. So the response to learn is not what the template makes
of the conversation, unless that continues the generation prompt with all of the answer; else it is the answer as given,
continued from where the generation prompt stops, with the end that the template puts behind answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hybridflow.data.template import Message
from hybridflow.errors import DataError

Render = Callable[[Sequence[Message], bool], str]
"""Text of messages, with the generation prompt or without."""

_OPENED = re.compile(r"<(?P<name>\w*(?:think|thought|reason)\w*)>(?P<space>\s*)\Z")
_CLOSED = re.compile(r"</(?P<name>\w*(?:think|thought|reason)\w*)>\s*\Z")
_PROBE = "Answerprobe7f3a9c"
"""Stands for an answer where the template is asked what it puts behind one."""
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Turn:
    """One answer of a conversation."""

    prompt: str
    """What the model reads before it: all earlier messages, and the generation prompt."""
    response: str
    """What it has to write, through the mark that ends the turn."""
    rest: str
    """What the template puts behind that mark; nobody writes it."""
    closes_empty_thought: bool = False
    """The answer has no thinking, and the generation prompt had opened it."""
    has_end: bool = True
    """The template puts a mark behind it, at which an engine can stop."""


def write_turn(render: Render, end_mark: re.Pattern[str], messages: Sequence[Message]) -> Turn:
    """The turn of the last message, an assistant's. `end_mark` finds a mark that can end a turn.

    Raises DataError where the answer cannot follow the generation prompt.
    """
    before, answer = list(messages[:-1]), messages[-1]["content"]
    if not answer.strip():
        raise DataError("the answer is empty")
    prompt = render(before, True)
    suffix = _suffix(render, before)
    end = end_mark.search(suffix)
    cut = end.end() if end else len(suffix)
    through = render(messages, False)
    body, closes = None, False
    if through.startswith(prompt) and through.endswith(suffix) and len(through) >= len(prompt) + len(suffix):
        body = _continued(prompt, through[len(prompt) : len(through) - len(suffix)], answer)
    if body is None:
        body, closes = _continue(prompt, answer)
    return Turn(prompt, body + suffix[:cut], suffix[cut:], closes, has_end=end is not None)


def _suffix(render: Render, before: list[Message]) -> str:
    """What the template puts behind an answer."""
    probed = render([*before, {"role": "assistant", "content": _PROBE}], False)
    _, found, suffix = probed.rpartition(_PROBE)
    if not found:
        raise DataError("the chat template does not write what an assistant says")
    return suffix


def _continued(prompt: str, body: str, answer: str) -> str | None:
    """`body`, which the template wrote behind the prompt, if it has all of the answer in the state the prompt left."""
    opened = _OPENED.search(prompt)
    written = body
    if opened:
        tag = opened["name"]
        if body.lstrip().startswith(f"<{tag}>") or f"</{tag}>" not in body:
            return None
        written = f"<{tag}>{body}"
    return body if _SPACE.sub("", written).endswith(_SPACE.sub("", answer)) else None


def _continue(prompt: str, answer: str) -> tuple[str, bool]:
    """The answer as it follows the prompt, and whether a thought that the prompt had opened was closed empty."""
    opened, closed = _OPENED.search(prompt), _CLOSED.search(prompt)
    if closed and f"</{closed['name']}>" in answer:
        raise DataError(
            f"the answer thinks in <{closed['name']}>, and the generation prompt of the chat template has closed that "
            "before it. Use a template that leaves it open, or answers without thinking"
        )
    if not opened:
        return answer, False
    tag, space = opened["name"], opened["space"]
    if answer.lstrip().startswith(f"<{tag}>"):
        if f"</{tag}>" not in answer:
            raise DataError(f"the answer opens <{tag}> and never closes it")
        return answer.lstrip().removeprefix(f"<{tag}>").removeprefix(space), False
    if f"</{tag}>" in answer:  # the thinking was opened by the prompt that it was written after
        return answer, False
    gap = "\n\n".removeprefix(space) if space in ("", "\n", "\n\n") else ""
    return f"{gap}</{tag}>\n\n{answer.lstrip()}", True
