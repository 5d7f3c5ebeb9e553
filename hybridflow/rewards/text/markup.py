"""HTML tags that only set type, left out: "<b>C</b>" is C. Others stay: an answer may be written "<Paris>" or "<B>"."""

from __future__ import annotations

import re

_PAIRED = re.compile(
    r"<(b|i|u|s|em|strong|span|p|div|code|pre|mark|font|center|sub|small|big|tt|kbd|td|li|h[1-6])(?:\s[^<>]{0,120})?>"
    r"([^<>]{0,400})</\1\s{0,4}>",
    re.IGNORECASE,
)
_ALONE = re.compile(
    r"</?(?:br|hr|p|div|ul|ol|li|table|tr|td|answer|final_answer|response|output|s|eos|bos)\s{0,4}/?>", re.IGNORECASE
)
_NESTED = 3


def drop_markup(text: str) -> str:
    """`text` without the tags, their content kept. Example: drop_markup("<strong>C</strong>") == "C" """
    if "<" not in text:
        return text
    for _ in range(_NESTED):
        text = _PAIRED.sub(r"\2", text)
    return _ALONE.sub(" ", text)
