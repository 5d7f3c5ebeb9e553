"""Text from elsewhere as it may be shown: nothing in it can move the cursor, turn the writing direction or hide.

Data, answers, column names and configuration keys are written by others. An escape sequence in them repaints a
terminal, a bidirectional mark lets a line read as another one, an invisible character makes two names look alike.
"""

from __future__ import annotations

import functools
import unicodedata


def visible(text: str, *, keep: str = "\n\t") -> str:
    r"""`text` with each character that a reader cannot see written as Python writes it.

    ESC becomes `\x1b`, U+202E becomes `\u202e`. So does every control and format character (C0, C1, bidirectional and
    zero-width marks, tags), each line and paragraph separator, lone surrogate, private and unassigned character.
    Those of `keep` stay: pass `keep=""` for a name that has to be on one line. Spaces of any width stay, and letters
    of any script.
    """
    return text if text.isprintable() else text.translate(_escapes(keep))


class _Escapes(dict[int, str]):
    """The text that each character is shown as; filled as characters are met."""

    def __init__(self, keep: str) -> None:
        super().__init__((ord(character), character) for character in keep)

    def __missing__(self, code: int) -> str:
        character = chr(code)
        is_shown = character.isprintable() or unicodedata.category(character) == "Zs"
        self[code] = character if is_shown else ascii(character)[1:-1]
        return self[code]


_escapes = functools.cache(_Escapes)
