"""What a reader sees of a completion: the text behind its thinking.

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

from hybridflow.config.reward_sections import THINKING_TAGS

Tags = Sequence[tuple[str, str]]
"""(opening, closing) of each way to mark a thought."""

_ANGLED = re.compile(r"<(/?)([\w:.-]+)>")
_ANGLED_SPACE = re.compile(r"(?<=<)\s+|(?<=</)\s+|(?<=[\w:.-])\s[^<>]*(?=>\Z)")


def after_thinking(text: str, tags: Tags = THINKING_TAGS) -> str:
    """The text behind the last closed thought; all of it where none is; "" where the last one is still open.

    Example: after_thinking("<Thinking>7?</Thinking> It is 9.") == " It is 9."
    """
    pattern, closings = _compile(tuple(tags))
    start, opened = 0, list[str]()
    for found in pattern.finditer(text):
        tag = _ANGLED_SPACE.sub("", found.group().lower()).strip()
        if tag in closings:
            opened += [tag] if tag not in opened else []
            continue
        del opened[next((at for at, opening in enumerate(opened) if tag in closings[opening]), 0) :]
        start = found.end()
    return "" if opened else text[start:]


@lru_cache(maxsize=16)
def _compile(tags: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str], dict[str, frozenset[str]]]:
    """A pattern of all tags, and for each opening one in lower case the closing ones that end it."""
    closings = {
        opening.lower(): frozenset(end.lower() for other, end in tags if other.lower() == opening.lower())
        for opening, _ in tags
    }
    names = sorted({found[2] for pair in tags for tag in pair if (found := _ANGLED.fullmatch(tag))})
    angled = rf"<\s{{0,4}}/?\s{{0,4}}(?:{'|'.join(map(re.escape, names))})(?:\s[^<>]{{0,80}})?>"
    patterns = [f"(?i:{angled})"] if names else []
    patterns += [_to_pattern(pair, tag) for pair in tags for tag in pair if not _ANGLED.fullmatch(tag)]
    return re.compile("|".join(dict.fromkeys(patterns)) or "(?!)"), closings


def _to_pattern(pair: tuple[str, str], tag: str) -> str:
    """`tag` in any case; a bare word, which is left of a special token that is not decoded, is read strictly."""
    if not tag.isalnum():
        return f"(?i:{re.escape(tag)})"
    return rf"\A\s{{0,8}}{tag}(?=[^\W_])" if tag == pair[0] else tag
