"""Sameness of two free-text answers: equal words, or the gold's words with nothing beside them that says more.

They decide on compared forms (`normalise`), so case, articles and punctuation play no part.

An answer to a yes-or-no question opens with the gold's word, and what follows explains it. An explanation is a reason,
a source, or a sentence of its own ("Yes, the board approved it"). What denies the opening word, or tells in which cases
alone it holds ("Yes, if the landlord agrees", "Yes, in theory", "No, except in 2019"), is none.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from hybridflow.rewards.numbers.number_forms import TIME
from hybridflow.rewards.rules.rule_result import RuleResult
from hybridflow.rewards.text.asides import abbreviates, drop_asides, is_empty, is_reference, is_source
from hybridflow.rewards.text.characters import CJK, unify
from hybridflow.rewards.text.lexicon import CLASS_NOUNS, LEGAL_FORMS, NEGATIONS, NEUTRAL, PLACES, TITLES, word_set
from hybridflow.rewards.text.normalise import Word, currencies, holds_label, normalise, split_words

YES_NO = "docqa_yes_no"
_POLARITY = {"yes": "yes", "true": "yes", "是": "yes", "是的": "yes", "对": "yes", "正确": "yes"}
_POLARITY |= {"no": "no", "false": "no", "否": "no", "不是": "no", "不": "no", "错": "no", "错误": "no"}
_OPENERS = word_set("definitely certainly clearly absolutely simply that so therefore hence thus indeed")
_QUALIFIES = re.compile(
    r"\b(?:but|however|although|though|except|(?<!\bno )exceptions?|unless|partially|partly|sometimes|maybe|perhaps"
    r"|possibly|or|not always|not entirely|not necessarily|only)\b"
    r"|(?:^|[,;:(-]|\bbut\b)\s{0,3}(?:if|provided|providing|when|whenever|where|subject to|depending|assuming"
    r"|as long as|so long as|on condition|conditional(?:ly)?)\b",
    re.IGNORECASE,
)
"""Behind a yes or no: it holds in part, or in some cases."""
_DENIES_ITSELF = re.compile(
    r"\b(?:it|he|she|they|this|that|we|i) (?:(?:is|was|are|were|did|does|do|has|have|had|can|could|may|will"
    r"|would)(?: not\b|n't)|cannot)",
    re.IGNORECASE,
)
_CONTRARY = {
    "yes": re.compile(
        r"(?:^|[,.;:!/&(-]|\band\b|\bor\b)\s{0,3}(?:no|nope|never|false|incorrect|wrong)(?=\s{0,3}(?:[,.;:!)/&-]|\Z))",
        re.IGNORECASE,
    ),
    "no": re.compile(
        r"(?:^|[,.;:!/&(-]|\band\b|\bor\b)\s{0,3}(?:yes|true|yeah)(?=\s{0,3}(?:[,.;:!)/&-]|\Z))", re.IGNORECASE
    ),
}
_SET_OFF = re.compile(
    r"[\s*\"')\]]{0,4}(?:[,.;:!(\n\u3002]|\s?-\s|\Z"
    r"|\s(?:because|since|as|given|the|an?|it|they|he|she|we|there|this|these|its|their|both|all)\b)",
    re.IGNORECASE,
)
"""Behind the word that answers: the end, or the beginning of an explanation."""
_BARE_NUMBER = re.compile(r"[\W_]{0,6}\d[\d.,]{0,20}\W{0,3}\Z")
_PHRASE = re.compile(
    r"[\s,;:(\"'*-]{1,6}(?:(?:in|to|for|with|without|on|at|under|within|during|until|from|up|almost|nearly"
    r"|more|less|kind|sort|after|before|past|pending|save|apart|aside|excluding|once|upon|over|above|below|between"
    r"|beyond|despite|outside|inside|through|regarding|concerning|barring|absent|as (?:to|for|regards|far)"
    r"|given (?!the|that|its|their)|hardly|scarcely|i (?:guess|suppose))\b"
    r"|(?!(?:clearly|certainly|definitely|absolutely|obviously|explicitly|expressly|namely"
    r"|exactly|precisely|accordingly|specifically|undoubtedly|surely|family|supply|apply|reply)\b)[a-z]{1,20}ly\b)"
    r"(?P<rest>[^.!?\n]{0,200})",
    re.IGNORECASE,
)
"""An adverb, or a preposition with its noun: no sentence of its own."""


_AT = word_set("in on at under within from per")

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


def find_accounted(predicted: str, gold: str) -> RuleResult:
    """Passes where the gold's words stand in the prediction, and every other word of it is accounted for.

    Before them: words that carry nothing of their own (`lexicon.NEUTRAL`), and the kind of thing they name ("the city
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
        return RuleResult(False, ACCOUNTED, f"{forms[1][:80]!r} does not stand in {forms[0][:80]!r}", *forms)
    left = _unaccounted_before(words[: start + 1], text, gold) + _unaccounted_behind(words[start + len(wanted) :], gold)
    if have_other_currency(predicted, gold):
        left.append("another currency")
    if left:
        shown = ", ".join(map(repr, left[:_SHOWN_WORDS]))
        return RuleResult(False, ACCOUNTED, f"{forms[1][:80]!r} stands in the prediction, but so does {shown}", *forms)
    return RuleResult(True, ACCOUNTED, f"{forms[1][:80]!r} with nothing beside it that says more", *forms)


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
    """Finds, of the words before the last one, with which the gold's begin, those that may change it."""
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


def find_yes_no(predicted: str, gold: str) -> RuleResult | None:
    """For a gold "yes" or "no": the prediction opens with it, and says nothing to the contrary."""
    forms = (normalise(predicted), normalise(gold))
    wanted = _POLARITY.get(forms[1])
    if wanted is None:
        return None
    words = forms[0].split()
    opener = next((at for at, word in enumerate(words) if word not in _OPENERS), len(words) - 1)
    if _POLARITY.get(words[opener]) != wanted:
        return RuleResult(False, YES_NO, f"the prediction does not open with {wanted!r}", *forms)
    rest = unify(predicted)
    rest = rest[re.search(rf"\b{words[opener]}\b|{words[opener]}", rest, re.IGNORECASE).end() :]  # type: ignore[union-attr]
    if told := _find_restriction(rest, wanted):
        return RuleResult(False, YES_NO, f"{told.strip()[:80]!r} contradicts or restricts {wanted!r}", *forms)
    unaccounted = [word for word in words[opener + 1 :] if word not in NEUTRAL and word not in NEGATIONS]
    if not _SET_OFF.match(rest.removeprefix("*")) and unaccounted:
        return RuleResult(False, YES_NO, f"{wanted!r} is part of something else: {unaccounted[0]!r}", *forms)
    return RuleResult(True, YES_NO, f"the prediction opens with {wanted!r}", *forms)


def _find_restriction(rest: str, wanted: str) -> str:
    """Finds what of `rest`, behind the word that answers, takes it back as a whole or in part; "" where nothing."""
    if _BARE_NUMBER.match(rest):
        return rest
    for pattern in (_CONTRARY[wanted], _QUALIFIES, *([_DENIES_ITSELF] if wanted == "yes" else [])):
        if found := pattern.search(rest):
            return found.group()
    phrase = _PHRASE.match(rest)
    if phrase is None:
        return ""
    told = phrase.group().strip(" ,;:.(-*)")
    if TIME.match(told):
        return ""
    is_place = (
        not told
        or is_source(told)
        or is_reference(told)
        or (told.partition(" ")[0].lower() in _AT and is_reference(told.partition(" ")[2]))
    )
    return "" if is_place or re.search(r"\S,\s", phrase["rest"]) else phrase.group()
