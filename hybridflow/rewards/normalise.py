"""The form in which two free-text answers are compared.

Source: the SQuAD normalisation that QwenLong-L1 uses (recipe section 4): lower case, no punctuation, no articles,
single spaces. Deviations, each of which closes a hole: NFKC first, so that full-width text compares; punctuation of
every script and currency signs go, not only ASCII; and what makes a number another number stays, which is the decimal
point between digits ("1.3" is not "13") and the minus before a digit ("-298" is not "298").
"""

from __future__ import annotations

import re
import string
import unicodedata

_DASHES = str.maketrans({"\u2212": "-", "\u2013": "-", "\u2014": "-", "\u2010": "-", "\u2011": "-"})
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_SIGN_COMES_AFTER = frozenset(" \t\n(" + "$\u00a3\u20ac\u00a5")


def normalise(text: str) -> str:
    """Lower case, no punctuation, no a/an/the, single spaces; "" where nothing is left.

    Example: normalise("The  U.S. Dollar, $1,234.5!") == "us dollar 1234.5"
    """
    folded = unicodedata.normalize("NFKC", text).translate(_DASHES).lower()
    kept = "".join(char for at, char in enumerate(folded) if not _is_dropped(folded, at))
    return " ".join(_ARTICLES.sub(" ", kept).split())


def _is_dropped(text: str, at: int) -> bool:
    char = text[at]
    before = text[at - 1] if at else " "
    after = text[at + 1 : at + 2]
    if char == "." and before.isdigit() and after.isdigit():
        return False
    if char == "-" and before in _SIGN_COMES_AFTER:
        return not re.match(r"[$\u00a3\u20ac\u00a5]?\.?\d", text[at + 1 : at + 4])
    if char in string.punctuation:
        return True
    category = unicodedata.category(char)
    return (category[0] in "PC" and not char.isspace()) or category == "Sc"
