"""What an answer is corrected to by the sentence behind it: the later one stands.

Example: "Oslo" in "The answer is Bergen. Wait, no: it is Oslo."

Only a sentence that opens by taking back what stands before is a correction. One that offers a second answer beside the
first ("or", "maybe") is none, and the words of a doubt stay part of what it says, where nothing accounts for them.
"""

from __future__ import annotations

import re

_TAKES_BACK = (
    r"(?:no|nope|wait|actually|sorry|correction|corrected|oops|hmm+|hold on|scratch that|strike that|i mean|i meant"
    r"|my mistake|on (?:second thought|reflection)|let me correct (?:that|this|it|myself)|make that"
    r"|not quite|不对|更正|等等)"
)
_CORRECTS = re.compile(
    rf"[\s*_\"')\].,-]{{0,8}}(?:{_TAKES_BACK}(?![\w'])[\s,:;.!*_-]{{0,6}}){{1,4}}"
    r"(?:(?:it|that|this|the (?:(?:correct|right|actual|real|true|final) )?(?:answer|one|value|number|total))"
    r"(?:'s| is| was| should be| must be)(?: actually| really)?\s|应该是|应为|是)?(?P<answer>[^\s.!].*)",
    re.IGNORECASE | re.DOTALL,
)


def read_correction(sentence: str) -> str:
    """The answer that `sentence` gives in place of the one before it; "" where it gives none."""
    found = _CORRECTS.fullmatch(sentence)
    return found["answer"] if found else ""
