"""The part of a completion that a reader sees: the text behind its thinking.

Models write their thoughts between tags, each family between its own (`reward.rules.thinking_tags`). An answer is what
stands behind the last thought that was closed. A thought that is still open at the end was cut off, and a completion
that ends in one has not answered, whatever is written in the thought.

Tags are paired as brackets are: closing a tag closes what was opened inside of it and left open. A closing tag that
nothing opened ends a thought that was opened in the prompt, so all that stands before it is thought.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from hybridflow.config.reward_sections import THINKING_TAGS

Tags = Sequence[tuple[str, str]]
"""(opening, closing) of each way to mark a thought."""

_ANGLED = re.compile(r"<(/?)([\w:.-]+)>")
_ANGLED_SPACE = re.compile(r"(?<=<)\s+|(?<=</)\s+|(?<=[\w:.-])\s[^<>]{0,80}(?=>\Z)")
_BEFORE_WORD = " \t\r\n"


class _Tags(NamedTuple):
    """Tags made ready for reading."""

    pattern: re.Pattern[str]
    """Any of them, bare words apart."""
    closings: dict[str, frozenset[str]]
    """Closing marks of each opening one, in lower case."""
    words: tuple[tuple[str, str], ...]
    """Opening marks that are bare words."""


def after_thinking(text: str, tags: Tags = THINKING_TAGS) -> str:
    """The text behind the last closed thought; all of it where none is; "" where the last one is still open.

    Example: after_thinking("<Thinking>7?</Thinking> It is 9.") == " It is 9."
    """
    pattern, closings, words = _prepare(tuple(tags))
    for opening, closing in words:
        head = text[: len(opening) + 9].lstrip(_BEFORE_WORD)
        if head.startswith(opening) and head[len(opening) : len(opening) + 1].isalnum():
            text = text.rpartition(closing)[2] if closing in text else ""
    start, opened = 0, list[str]()
    for found in pattern.finditer(text):
        tag = _ANGLED_SPACE.sub("", found.group().lower())
        if tag in closings:
            opened += [tag] if tag not in opened else []
            continue
        del opened[next((at for at, opening in enumerate(opened) if tag in closings[opening]), 0) :]
        start = found.end()
    return "" if opened else text[start:]


@lru_cache(maxsize=16)
def _prepare(tags: tuple[tuple[str, str], ...]) -> _Tags:
    closings = {
        opening.lower(): frozenset(end.lower() for other, end in tags if other.lower() == opening.lower())
        for opening, _ in tags
    }
    plain = [tag for pair in tags for tag in pair if not _ANGLED.fullmatch(tag) and not tag.isalnum()]
    patterns = [f"{re.escape(tag[0])}(?i:{re.escape(tag[1:])})" for tag in dict.fromkeys(plain)]
    if names := sorted({found[2] for pair in tags for tag in pair if (found := _ANGLED.fullmatch(tag))}):
        patterns.append(rf"<(?i:\s{{0,4}}/?\s{{0,4}}(?:{'|'.join(map(re.escape, names))})(?:\s[^<>]{{0,80}})?>)")
    words = tuple(pair for pair in tags if pair[0].isalnum() and pair[1].isalnum())
    return _Tags(re.compile("|".join(patterns) or "(?!)"), closings, words)
