"""Answers to yes-or-no questions: the answer opens with the gold's word, and what follows explains it.

An explanation is a reason, a source, or a sentence of its own ("Yes, the board approved it"). What denies the opening
word, or tells in which cases alone it holds ("Yes, if the landlord agrees", "Yes, in theory", "No, except in 2019"), is
none.
"""

from __future__ import annotations

import re

from hybridflow.rewards.numbers.number_forms import TIME
from hybridflow.rewards.rules.rule_result import Finding
from hybridflow.rewards.text.asides import is_reference, is_source
from hybridflow.rewards.text.characters import unify
from hybridflow.rewards.text.lexicon import NEGATIONS, NEUTRAL, word_set
from hybridflow.rewards.text.normalise import normalise

RULE = "docqa_yes_no"
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


def find_yes_no(predicted: str, gold: str) -> Finding | None:
    """For a gold "yes" or "no": the prediction opens with it, and says nothing to the contrary."""
    forms = (normalise(predicted), normalise(gold))
    wanted = _POLARITY.get(forms[1])
    if wanted is None:
        return None
    words = forms[0].split()
    opener = next((at for at, word in enumerate(words) if word not in _OPENERS), len(words) - 1)
    if _POLARITY.get(words[opener]) != wanted:
        return Finding(False, RULE, f"the prediction does not open with {wanted!r}", *forms)
    rest = unify(predicted)
    rest = rest[re.search(rf"\b{words[opener]}\b|{words[opener]}", rest, re.IGNORECASE).end() :]  # type: ignore[union-attr]
    if told := _find_restriction(rest, wanted):
        return Finding(False, RULE, f"{told.strip()[:80]!r} contradicts or restricts {wanted!r}", *forms)
    unaccounted = [word for word in words[opener + 1 :] if word not in NEUTRAL and word not in NEGATIONS]
    if not _SET_OFF.match(rest.removeprefix("*")) and unaccounted:
        return Finding(False, RULE, f"{wanted!r} is part of something else: {unaccounted[0]!r}", *forms)
    return Finding(True, RULE, f"the prediction opens with {wanted!r}", *forms)


def _find_restriction(rest: str, wanted: str) -> str:
    """What of `rest`, which follows the word that answers, takes it back as a whole or in part; "" where nothing."""
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
