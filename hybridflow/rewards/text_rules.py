"""When two texts are the same answer: equal words, or the gold's words standing in a prediction not much longer.

Each rule gives a Finding. They decide on compared forms (`normalise`), so case, articles and punctuation play no part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hybridflow.rewards.characters import unify
from hybridflow.rewards.findings import Finding
from hybridflow.rewards.normalise import Word, currencies, holds_label, normalise, split_words
from hybridflow.rewards.wording import (
    ALTERNATIVES,
    COMPARISONS,
    ELSEWHERE,
    NEGATIONS,
    SIGN_WORDS,
    SMALL_WORDS,
    is_scale,
)

EQUAL = "docqa_equal"
WITHIN = "docqa_within"
MOST_WORDS_MORE = 3
"""Words that a prediction may have beyond a short gold; a long gold allows as many as it has itself.

Enough for "Paris, the capital of France", and no room for a list of guesses or a sentence about something else.
"""
_PIECE = re.compile("(?<!\\d),|,(?!\\d{3})|[;\u3001\n]")
_ALTERNATIVE_MARK = re.compile("\\s(?:[/|\u2192\u21d2]|[-=]>)\\s|[;\n]")


def have_equal_words(predicted: str, gold: str) -> bool:
    """Whether both are the same words in the same order; "e-mail" is "email", and "3-5" is "3 to 5".

    Example: have_equal_words("The U.S. dollar", "us Dollar")
    """
    keep_a = holds_label(gold)
    one, other = (_drop_to([word.text for word in split_words(text, keep_a=keep_a)]) for text in (predicted, gold))
    if one == other:
        return bool(one)
    joined = "".join(one)
    return joined == "".join(other) and not any(map(str.isdigit, joined))


def _drop_to(words: list[str]) -> list[str]:
    """Without the "to" of a range, which may be written as a dash too."""
    between = zip(["", *words], words, [*words[1:], ""], strict=False)
    return [word for left, word, right in between if not (word == "to" and left[:1].isdigit() and right[:1].isdigit())]


def have_other_currency(predicted: str, gold: str) -> bool:
    """Whether both name a currency by its sign, and not the same one."""
    one, other = currencies(predicted), currencies(gold)
    return bool(one and other) and not one & other


def find_within(predicted: str, gold: str) -> Finding:
    """Passes where the gold's words stand together, as whole words, in a prediction that is not much longer.

    Not much longer: beyond the gold at most MOST_WORDS_MORE words, or as many as the gold has; SMALL_WORDS (it, is, of,
    in ...) are not counted, and a gold that is no list may be joined by one piece set off by a comma. None of these
    words may turn the answer round ("not Paris"), join another answer ("Paris or London"), or change a number ("over
    5", "5 million", "5 of 7"). Never the other way round: a prediction that is only a part of the gold does not pass.
    """
    keep_a = holds_label(gold)
    words, wanted = split_words(predicted, keep_a=keep_a), split_words(gold, keep_a=keep_a)
    forms = (normalise(predicted), normalise(gold))
    more = _words_around(words, wanted)
    if more is None:
        return Finding(False, WITHIN, f"{forms[1][:80]!r} does not stand in {forms[0][:80]!r}", *forms)
    if problem := _changes_the_answer(more, predicted, gold):
        return Finding(False, WITHIN, f"{forms[1][:80]!r} stands in the prediction, but {problem}", *forms)
    counted = [word for word in more if word not in SMALL_WORDS]
    limit = max(MOST_WORDS_MORE, len(wanted))
    if len(counted) > limit:
        why = f"the prediction has {len(counted)} words more than the gold, above the limit of {limit}"
        return Finding(False, WITHIN, why, *forms)
    return Finding(True, WITHIN, f"{forms[1][:80]!r} stands in the prediction, which is not much longer", *forms)


def _words_around(words: Sequence[Word], wanted: Sequence[Word]) -> list[str] | None:
    """What is left of `words` without the first whole run of `wanted`; None where there is no such run."""
    texts, run = [word.text for word in words], [word.text for word in wanted]
    for start in range(len(texts) - len(run) + 1):
        end = start + len(run)
        is_cut = words[start].is_joined or (end < len(words) and words[end].is_joined)
        if texts[start:end] == run and not is_cut:
            return texts[:start] + texts[end:]
    return None


def _changes_the_answer(more: list[str], predicted: str, gold: str) -> str:
    """Why the words around the gold make another answer of it; "" where they do not."""
    if found := (NEGATIONS | ELSEWHERE).intersection(more):
        return f"{sorted(found)[0]!r} turns it round"
    if found := ALTERNATIVES.intersection(more):
        return f"{sorted(found)[0]!r} joins another answer to it"
    if _ALTERNATIVE_MARK.search(unify(predicted)) and not _ALTERNATIVE_MARK.search(unify(gold)):
        return "another answer stands beside it"
    num_gold_pieces = _num_pieces(gold)
    if _num_pieces(predicted) > num_gold_pieces + (num_gold_pieces == 1):
        return "the prediction is a list"
    if have_other_currency(predicted, gold):
        return "in another currency"
    if any(map(str.isdigit, gold)):
        for word in more:
            if any(map(str.isdigit, word)) or is_scale(word) or word in COMPARISONS or word in SIGN_WORDS:
                return f"{word!r} changes the number"
    return ""


def _num_pieces(text: str) -> int:
    return sum(bool(normalise(piece)) for piece in _PIECE.split(unify(text)))
