"""Words that decide whether an answer still says what the gold says, once more words stand around it."""

from __future__ import annotations


def word_set(names: str) -> frozenset[str]:
    """The words of a line of text."""
    return frozenset(names.split())


SMALL_WORDS = word_set(
    "it its is was were are be been being this that these those there they he she we i which who has have had did does "
    "do would will in of on at by to for from with as called named known s my our his her their also only just simply "
    "approximately about around roughly nearly almost exactly both"
)
"""Carry no answer of their own: they are not counted where the length of an answer is."""

NEGATIONS = word_set(
    "not no non never neither nor none nothing without except excluding unlike isnt wasnt arent werent dont doesnt "
    "didnt cant cannot wont nt but rather instead wrong incorrect false unknown unclear unsure ex anti "
    "不 非 不是 并非 没有 而非"
)
"""Turn an answer round, or take it back."""

ALTERNATIVES = word_set("or and plus versus vs either 和 或 或者 与 及 以及 还是")
"""Join a second answer to the first."""

ELSEWHERE = word_set("opposite contrary other outside near besides")
"""Before the gold, name another thing than it: "near Paris", "other than Paris"."""

SIGN_WORDS = word_set(
    "minus negative loss losses decrease decreased decreasing decline declined fall fell drop dropped down lower "
    "reduction reduced"
)
"""Before a number: whether it is below zero cannot be told."""

COMPARISONS = word_set("less more greater fewer over under above below least most up within between beyond until")
"""Before a number: another quantity than the number itself."""

SCALES = {
    "hundred": 2, "thousand": 3, "lakh": 5, "lac": 5, "million": 6, "mn": 6, "mln": 6, "mil": 6, "mio": 6, "crore": 7,
    "billion": 9, "bn": 9, "bln": 9,
    "trillion": 12, "tn": 12,
    "百": 2, "千": 3, "万": 4, "百万": 6, "千万": 7, "亿": 8, "十亿": 9,
    "百亿": 10, "千亿": 11, "万亿": 12,
}  # fmt: skip
"""Scale word -> power of ten. Plurals take an "s"."""

SCALE_LETTERS = {"k": 3, "m": 6, "mm": 6, "b": 9, "t": 12}
"""Read as scales only behind an amount of money, such as "$4.2M"."""

MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "january jan", "february feb", "march mar", "april apr", "may", "june jun", "july jul", "august aug",
            "september sept sep", "october oct", "november nov", "december dec",
        ),
        start=1,
    )
    for name in names.split()
}  # fmt: skip


def is_scale(word: str) -> bool:
    """Whether a compared word multiplies a number: "million", "millions", "亿元"."""
    return word.removesuffix("s") in SCALES or word.startswith(("百", "千", "万", "亿"))
