"""When two texts are the same answer: equal words, or the gold's words with nothing beside them that says more.

They decide on compared forms (`normalise`), so case, articles and punctuation play no part.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from hybridflow.rewards.rules.rule_result import Finding
from hybridflow.rewards.text.asides import abbreviates, drop_asides, is_empty
from hybridflow.rewards.text.characters import CJK, unify
from hybridflow.rewards.text.lexicon import CLASS_NOUNS, LEGAL_FORMS, NEUTRAL, PLACES, TITLES, word_set
from hybridflow.rewards.text.normalise import Word, currencies, holds_label, normalise, split_words

EQUAL = "docqa_equal"
ACCOUNTED = "docqa_accounted"
_BREAK = re.compile(r"[,;:()\[\]|/\n\u3001\u3002\u2192\u21d2]|\s-+\s|[-=]>")
_MARKS_BETWEEN = re.compile(r"[;|/\n\u3001\u3002\u2192\u21d2]|\s-+\s|[-=]>")
_COPULAS = word_set("is was are were be been equals named called titled 是 为")
_OF_NAME = PLACES | word_set("year month")
"""With "of", before a name of their kind."""
_QUOTE = re.compile("[\"'\u00ab\u300a]")
_UNREAL = re.compile(r"\A(?:it |that |this )?(?:should|could|might|may) have (?:been )?", re.IGNORECASE)
"""Opens an answer that did not come true."""
_CHINESE_LEAD = re.compile(f"(?:应该是|应为|就是|即|是|为|在|位于|名为|叫)(?=[{CJK}A-Za-z0-9])")
_NEUTRAL_BEHIND = word_set("only exactly applies apply exists exist") | LEGAL_FORMS
_SHOWN_WORDS = 8


def have_equal_words(predicted: str, gold: str) -> bool:
    """Whether both are the same words in the same order; "e-mail" is "email", and "3-5" is "3 to 5".

    Example: have_equal_words("The U.S. dollar", "us Dollar")
    """
    keep_a = holds_label(gold) or holds_label(predicted)
    one, other = (_write_to(split_words(text, keep_a=keep_a)) for text in (predicted, gold))
    if one == other:
        return bool(one)
    joined = "".join(one)
    return joined == "".join(other) and not any(map(str.isdigit, joined))


def are_equal_as_written(predicted: str, gold: str) -> bool:
    """Whether both are the same characters, case and outer space aside: for golds of articles or marks alone."""
    one, other = (unify(text).strip().casefold() for text in (predicted, gold))
    return one == other


def have_other_currency(predicted: str, gold: str) -> bool:
    """Whether both name a currency by its sign, and not the same one."""
    one, other = currencies(predicted), currencies(gold)
    return bool(one and other) and not one & other


def find_accounted(predicted: str, gold: str) -> Finding:
    """Passes where the gold's words stand in the prediction, and every other word of it is accounted for.

    Before them: words that carry nothing of their own (`wording.NEUTRAL`), and the kind of thing they name ("the city
    of"). Behind them: a company's legal form, their abbreviation in brackets, and where they stand (`asides`). Any
    other word may make another answer of them ("successor of", "Vice", "Energy", "maybe London") and is named in `why`.
    Never the other way round: a prediction that is only a part of the gold does not pass.
    """
    forms = (normalise(predicted), normalise(gold))
    keep_a = holds_label(gold) or holds_label(predicted)
    text = drop_asides(unify(predicted))
    text = text if _CHINESE_LEAD.match(unify(gold)) else _CHINESE_LEAD.sub("", text, count=1)
    words, wanted = split_words(text, keep_a=keep_a), split_words(gold, keep_a=keep_a)
    start = _find_run(words, wanted)
    if start is None:
        return Finding(False, ACCOUNTED, f"{forms[1][:80]!r} does not stand in {forms[0][:80]!r}", *forms)
    left = _unaccounted_before(words[: start + 1], text, gold) + _unaccounted_behind(words[start + len(wanted) :], gold)
    if have_other_currency(predicted, gold):
        left.append("another currency")
    if left:
        shown = ", ".join(map(repr, left[:_SHOWN_WORDS]))
        return Finding(False, ACCOUNTED, f"{forms[1][:80]!r} stands in the prediction, but so does {shown}", *forms)
    return Finding(True, ACCOUNTED, f"{forms[1][:80]!r} with nothing beside it that says more", *forms)


def _write_to(words: Sequence[Word]) -> list[str]:
    """The texts of `words`, with "to" for the dash of a range between two numbers."""
    written: list[str] = []
    for word in words:
        is_range = word.gap.strip() == "-" and word.text[:1].isdigit() and bool(written) and written[-1][:1].isdigit()
        written += ["to", word.text] if is_range else [word.text]
    return written


def _ranges(words: Sequence[Word]) -> list[bool]:
    """Whether each word but the first is the far end of a range: "3-5" is not "3, 5"."""
    return [
        word.gap.strip() == "-" and word.text[:1].isdigit() and before.text[:1].isdigit()
        for before, word in itertools.pairwise(words)
    ]


def _find_run(words: Sequence[Word], wanted: Sequence[Word]) -> int | None:
    """Where the first whole run of `wanted` begins in `words`."""
    texts, run = [word.text for word in words], [word.text for word in wanted]
    for start in range(len(texts) - len(run) + 1):
        end = start + len(run)
        is_cut = words[start].is_joined or (end < len(words) and words[end].is_joined)
        is_same = not is_cut and texts[start] == run[0] and texts[start:end] == run
        if is_same and _ranges(words[start:end]) == _ranges(wanted):
            return start
    return None


def _unaccounted_before(words: Sequence[Word], text: str, gold: str) -> list[str]:
    """Of the words before the last one, with which the gold's begin, those that may change it."""
    left: list[str] = []
    for at, word in enumerate(words[:-1]):
        is_kind = word.text in CLASS_NOUNS and _names_kind(words, at, text, gold)
        of_kind = word.text == "of" and at > 0 and words[at - 1].text in CLASS_NOUNS and not left
        if word.text not in NEUTRAL and not is_kind and not of_kind:
            left.append(word.text)
    if found := _UNREAL.search(text):
        left += found.group().split()[:1]
    marks = "".join(word.gap for word in words)
    return left + ([] if left else _MARKS_BETWEEN.findall(marks)[:1])


def _names_kind(words: Sequence[Word], at: int, text: str, gold: str) -> bool:
    """Whether a class noun says what the answer is ("the total is X", "the city of X", "the company X"), and is no
    part of another name ("State Street") or thing ("the value of the house").
    """
    noun, following = words[at].text, words[at + 1]
    if following.text in _COPULAS or ":" in following.gap:
        return True
    if noun in TITLES:
        return at == len(words) - 2 and not gold[:1].islower()
    if _BREAK.search(following.gap):
        return False
    if following.text in CLASS_NOUNS:
        return _names_kind(words, at + 1, text, gold)
    if following.text == "of":
        return at == len(words) - 3 and noun in _OF_NAME and not gold[:1].islower()
    is_name = not gold[:1].islower() or bool(_QUOTE.search(following.gap))
    return at == len(words) - 2 and is_name and (gold[:1].isdigit() or bool(re.search(rf"\b{noun}\b", text)))


def _unaccounted_behind(words: Sequence[Word], gold: str) -> list[str]:
    at = 0
    while at < len(words) and words[at].text in _NEUTRAL_BEHIND:
        at += 1
    left = [word.text for word in words[at:]]
    if is_empty(" ".join(left)):
        return []
    return [] if left and abbreviates(" ".join(left), gold) and "(" in words[at].gap else left
