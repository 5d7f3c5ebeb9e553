"""Sentences behind an answer: an explanation, a correction, or a second thought that denies it or offers another one.

Only the answer earns a reward, so no sentence behind it can earn a second one. But an answer that is taken back, or to
which a guess is added, is no answer. A sentence is such a second thought where

- it opens as one ("No, ...", "Maybe ...", "Alternatively ..."), and not as a statement that happens to begin with the
  word ("No other city is named.", "Sorry for the long derivation.");
- it speaks of another answer ("It could also be 5.", "London is possible too."), or doubts this one;
- it is no sentence but a bare word or number ("London."), and no source ("Note 5.") or courtesy either;
- it says what "it" is, and that is something else ("It is London.").

What an answer is corrected to stands: "Oslo" in "The answer is Bergen. Wait, no: it is Oslo." Only a sentence that
opens by taking back what stands before is a correction. One that offers a second answer beside the first ("or",
"maybe") is none, and the words of a doubt stay part of what it says, where nothing accounts for them.

A rival candidate has the form of the answer: a name beside a name, a number beside a number. It is put forward where
the sentence says of it that it is something, or says that something is it, and does not deny it; and wherever the
sentence turns against what stands before ("however", "though"). A name that tells where or with whom something happened
is none ("The lease was signed in Berlin."), nor is a number that a derivation goes through, or that held at another
time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice

from hybridflow.rewards.numbers.arithmetic import compute
from hybridflow.rewards.numbers.number_forms import TIME
from hybridflow.rewards.numbers.read_number import parse_quantity
from hybridflow.rewards.text.asides import DOCUMENT_WORDS, is_empty, is_reference, is_source
from hybridflow.rewards.text.lexicon import MONTHS, word_set
from hybridflow.rewards.text.normalise import normalise, split_words
from hybridflow.rewards.text.sentences import split_sentences

_NAME = re.compile(r"[A-Z][\w'&.-]{0,40}(?:\s(?:(?:of|the|de|and)\s)?[A-Z][\w'&.-]{0,40}){0,5}")
_NUMBER = re.compile(r"(?<![\w.,/-])[-+]?[$£€¥]?\d[\d,.]{0,30}")
_NO_NAME = word_set(
    """i the a an this that these those it its they their he she his her we our you your there here in on at by of to
    for from with under per as so if and or but no not none all both each any some since because when while where which
    who what how thus hence therefore however though although also another other only one two three first second third
    last next note see source sources clause let yes according based given both such after before during until unless
    still then now please ok okay thanks thank usd eur gbp us mr mrs ms dr is was ceo cfo explanation reasoning evidence
    confidence answer final correct"""
)
_TURNS = re.compile(
    r"\b(?:however|though|although|but|yet|still|that said|then again|on the other hand|nevertheless|nonetheless"
    r"|as well|likewise|too|instead|conversely|if|unless|otherwise)\b",
    re.IGNORECASE,
)
_DENIES = re.compile(
    r"\b(?:no|not|never|neither|nor|only|merely|none|without|unlike|rejected?|excluded?|ruled out|irrelevant|unrelated"
    r"|wrong|incorrect|false|former(?:ly)?|previous(?:ly)?|later|earlier|rather than|instead of|different|distractor"
    r"|cannot)\b|n't\b",
    re.IGNORECASE,
)
_IS_SAID_OF = re.compile(
    r"\s(?:is|was|would|could|may|might|must|should|can|seems?|looks?|appears?|sounds?|fits?|matches|works?|also"
    r"|remains?|makes)\b",
    re.IGNORECASE,
)
_SAID_TO_BE = re.compile(
    r"(?:\b(?:is|was|be|been|says?|said|states?|suggests?|names?|named|gives?|gave|accept|prefer|choose|pick|mean|meant"
    r"|becomes?|have|to|as|call|shows?|reads?|reports?|considers?|favou?rs?|supports?)|[:=])\s{1,2}(?:the\s|an?\s)?"
    r"[\"'*_(]{0,3}\Z",
    re.IGNORECASE,
)
_LAST = re.compile(r"[\s\"'*_.!)]{0,6}(?:too|instead|as well|also|though|here)?[\s\"'*_.!)]{0,6}\Z", re.IGNORECASE)
_SAID_NUMBER = re.compile(
    r"\b(?:it|this|that|answer|value|number|total|result|figure|one)(?:'s| is| was| would be| should be| equals)"
    r"(?: about| actually| really| rather| in fact)? \Z",
    re.IGNORECASE,
)
_RESULT = re.compile(r"(?:\b(?:gives?|gave|yields?|makes?|get|gets|obtain|arrive at)\s|=\s?)\Z", re.IGNORECASE)
_OTHER_TIME = re.compile(
    r"\b(?:last|previous|prior|preceding|next) (?:year|quarter|month|period)\b|\bthe (?:fiscal )?(?:19|20)\d\d\b",
    re.IGNORECASE,
)
_WINDOW = 60

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

_MOST_SENTENCES = 60
_HEAD = r"[\s*_\"')\].,-]{0,8}"
_OPENS = re.compile(
    _HEAD + r"(?:(?:no|nope|not|but|wait|actually|sorry|correction|oops|hmm+|or|alternatively|alternative|maybe|perhaps"
    r"|possibly|otherwise|else|rather|instead|scratch|update|edit|hold on"
    r"|strike that|on reflection|corrected|revised|however|on second thought|i mean|my mistake|if not)\b"
    r"|不[,，对]|等等|或者|也可能|可能|更正)",
    re.IGNORECASE,
)
_STATES = re.compile(
    _HEAD + r"(?:no (?!(?:it|its|that|this|wait|sorry|i)\b|the answer\b)[a-z]+ |sorry (?:for|about|if|that)\b"
    r"|not(?: \w+){0,3} (?:other|further)|not [a-z]+\W{0,3}$|however,? (?:this|the|it|that|no)\b"
    r"|or,? (?:in other words|equivalently|simply|put)|actually,? (?:this|that) (?:is )?(?:confirm|agree|match)"
    r"|but (?:this|that|the|it) (?:does not|doesn't|is not relevant)"
    r"|alternatively,? (?:one|we|you|this) (?:can|could) (?:be )?(?:see|seen|check|verif|comput|deriv))",
    re.IGNORECASE,
)
_RULES_OUT = re.compile(_HEAD + r"no (?:other|further|additional|alternative)s?\b", re.IGNORECASE)
_NOT_OTHER = re.compile(r"[\s*_]{0,8}[Nn]ot (?:[A-Z]\w{0,30}|[$£€]?\d[\d.,]{0,20}%?)(?: [A-Z]\w{0,30}){0,3}\W{0,3}\Z")
_GOOD = r"(?:possible|plausible|correct|acceptable|valid|right)"
_ANSWER = r"(?:answer|option|candidate|guess|choice|possibility|value|reading)"
_OFFERS = re.compile(
    r"\b(?:could|may|might|can|would) (?:also|possibly|perhaps|well|instead|equally)\b"
    r"|\b(?:it|this|that|which|answer) (?:could|may|might) (?:be|have been)\b"
    r"|\b(?:a|my|best|just) guess\b|\bguess(?:ing|ed)\b"
    rf"|\b(?:also|equally|too|another|second|other) (?:a )?(?:possible |plausible )?(?:{_GOOD}|{_ANSWER})\b"
    rf"|\b{_GOOD} (?:too|as well)\b|\b(?:is|are|was|were) (?:also|equally) (?:{_GOOD}|an?)\b"
    r"|\b(?:is|are) (?:possible|plausible)\b|\bor (?:maybe|perhaps|possibly|else|rather)\b|\b(?:maybe|perhaps"
    r"|alternatively)\b"
    rf"|\blet me (?:correct|fix|change|revise|amend)\b|\b(?:chang(?:e|ing)|revis(?:e|ing)) (?:it|that|my answer)\b"
    rf"|\b(?:second|next|other|alternative|backup) (?:best |possible )?{_ANSWER}\b|\bi (?:take|took) (?:it|that) back\b"
    r"|\b(?:that|this|it|answer|above) (?:is|was|seems|looks) (?:actually )?"
    r"(?:wrong|incorrect|not right|not correct|mistaken|an error|a mistake)\b"
    r"|\b(?:better|best|good|closer|closest|stronger|likelier|more likely|alternate) (?:answer|fit|choice"
    r"|candidate|option|match|reading|guess)\b|\bjust as (?:good|right|valid|correct|likely)\b"
    r"|\b(?:defensible|arguable|acceptable)\b"
    r"|\btorn between\b|\bi (?:retract|withdraw|revoke|take back)\b|\b(?:ignore|disregard|forget)"
    r" (?:that|this|it|the above|my)\b|\b(?:joke|joking|kidding|unreliable|untrue)\b"
    r"|\bnot (?:the|my) (?:final |correct |right )?answer\b"
    r"|\b(?:did|does|do|would|will|is|was|has) too\b|\b(?:so|as) (?:did|does|do|is|was|are|would|has)\b(?! not)"
    r"|\bstrictly speaking\b|\b(?:more|to be) (?:precise|exact|accurate)(?:ly)?\b"
    r"|\b(?:could|may|might) be (?:wrong|mistaken|incorrect)\b|\bnot (?:certain|sure|confident)\b|\b(?:unsure"
    r"|uncertain)\b"
    r"|\bshould (?:instead )?(?:have been|be)\b|\bi meant\b|\b(?:unable|impossible) to"
    r" (?:say|tell|decide|determine|know|confirm|answer|be sure)\b"
    r"|\b(?:can(?:not|'t| not)|could not|couldn't|do not|don't) (?:say|tell|decide|determine|know|confirm|answer)\b"
    r"|\bmade (?:a mistake|an error)\b|也可能|也可以是|或者是",
    re.IGNORECASE,
)
_CONDITION = re.compile(_HEAD + r"(?:if|unless|when|where|in (?:some|other|certain) cases?)\b", re.IGNORECASE)
"""Opens a sentence that tells in which case another answer holds."""
_SAYS_WHAT = re.compile(
    r"[\s*_]{0,8}(?:it|this|that|the (?:correct |real |true |final )?(?:answer|value|number|total))"
    r"(?:'s| is| was| would be| equals) (?P<what>[^.!?\n]{1,120})",
    re.IGNORECASE,
)
ABOUT_THE_ANSWER = re.compile(
    r"[\s*_]{0,8}(?:also |then |thus |therefore |clearly |well )?(?:based|supported|derived|confirmed|consistent"
    r"|taken|obtained|backed|drawn|justified|verified|reflected"
    r"|explained|located|discussed|determined|calculated|computed|correct\b|right\b|clear\b|easy\b|rounded|expressed"
    r"|in line"
    r"|in accordance|according|(?:found|given|stated|shown|reported|provided|listed) (?:in|on|by|at|above|below"
    r"|there))",
    re.IGNORECASE,
)
"""Behind "the answer is": where it comes from, and no answer."""
_DESCRIBES = re.compile(
    r"(?:an?|the|its|their|based|in line|stated|shown|listed|given|found|confirmed|supported|more|less|also|why|what"
    r"|how"
    r"|because|where|consistent|the same|all|not|no|clear|correct|right|equal|rounded|expressed|reported|up|down|below"
    r"|above|about|in|on|from|for|due|[a-z]{1,20}(?:ed|ing))\b",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"\s{0,4}(?:the|an?|its|their|his|her)\b", re.IGNORECASE)
_VERBS = word_set(
    """is are was were be been being has have had do does did can could will would may might must shall should i we
    you it
    this that they he she there confirm confirms agree agrees match matches show shows state states say says read reads
    list lists give gives follow follows equal equals mean means include includes support supports appear appears apply
    applies make makes took takes take see hope note used uses use refer refers comes came come stands stood according
    because since as where which who let me check checked checking please ask"""
)
"""Words that a sentence has, and a bare answer has not: verbs, pronouns, conjunctions."""
_CHINESE_VERB = re.compile("[是有为在的了可已见由]")
_COURTESY = word_set(
    """thank thanks you very much done yes ok okay qed hope helps end explanation reasoning rationale justification
    analysis evidence details summary derivation calculation confidence 谢谢 以上 完 解析 解释 理由"""
)
_LABELLED = re.compile(
    r"[\s*_\"'-]{0,8}(?:(?:confidence|certainty)(?: (?:level|score))?|evidence|sources?|references?|reason(?:ing)?"
    r"|explanation|basis|rationale|justification|quote)[\s*_]{0,4}:",
    re.IGNORECASE,
)
"""A label whose text is about the answer."""


def find_second_thought(rest: str, answer: str) -> str:
    """The sentence of `rest`, which follows `answer`, that takes it back or offers another one; "" where none does."""
    for sentence in islice(split_sentences(rest), _MOST_SENTENCES):
        if _is_second_thought(sentence, answer):
            return sentence.strip()
    return ""


def _is_second_thought(sentence: str, answer: str) -> bool:
    words = [word.text for word in split_words(sentence)]
    if not words or (_NOT_OTHER.match(sentence) and normalise(answer) not in " ".join(words)):
        return False
    has_verb = bool(_VERBS.intersection(words) or _CHINESE_VERB.search(sentence))
    if _RULES_OUT.match(sentence) and has_verb:
        return False
    if _OFFERS.search(sentence):
        return True
    if _CONDITION.match(sentence):
        then = sentence.partition(",")[2]
        return _is_second_thought(then, answer) if then else "you" not in words
    if _OPENS.match(sentence):
        states = _STATES.match(sentence) and (has_verb or words[0] == "sorry")
        return not states or puts_forward_rival(sentence, answer)
    if told := _SAYS_WHAT.match(sentence):
        is_name = not told["what"][:1].islower() or answer[:1].islower()
        if _is_parallel(told["what"], answer):
            return not _is_repeated(told["what"], answer)
        is_about = _DESCRIBES.match(told["what"]) or ABOUT_THE_ANSWER.match(told["what"])
        return is_name and not is_about and not _is_repeated(told["what"], answer)
    if puts_forward_rival(sentence, answer):
        return True
    return not has_verb and _is_bare(sentence, words) and not _is_repeated(sentence, answer)


def _is_parallel(told: str, answer: str) -> bool:
    """Whether what a sentence says "it" is has the form of an answer with an article: "the landlord", "the tenant"."""
    articles = [found.group().lower() if (found := _ARTICLE.match(text)) else "" for text in (told, answer)]
    return bool(articles[0]) and articles[0] == articles[1] and len(told.split()) <= len(answer.split()) + 1


def _is_bare(sentence: str, words: list[str]) -> bool:
    """Whether words without a verb are an answer that stands alone, and no source, courtesy or participle."""
    if all(word in _COURTESY for word in words) or any(word.endswith(("ed", "ing")) for word in words[1:]):
        return False
    return not (_LABELLED.match(sentence) or is_source(sentence) or is_reference(sentence) or is_empty(sentence))


def _is_repeated(told: str, answer: str) -> bool:
    value, number = compute(told), parse_quantity(answer)
    if value is not None and number is not None and value == number.value:
        return True
    one, other = normalise(told), normalise(answer)
    return bool(other) and (one == other or one.startswith(other + " ") or one.endswith(" " + other))


def read_correction(sentence: str) -> str:
    """The answer that `sentence` gives in place of the one before it; "" where it gives none."""
    found = _CORRECTS.fullmatch(sentence)
    return found["answer"] if found else ""


def puts_forward_rival(sentence: str, answer: str) -> bool:
    """Whether `sentence`, which stands behind `answer`, asserts another candidate of its form."""
    is_turn = bool(_TURNS.search(sentence))
    if answer[:1].isdigit() or answer[1:2].isdigit():
        if TIME.search(sentence) or _OTHER_TIME.search(sentence):
            return False
        is_told = any(is_turn or _is_number_asserted(sentence, *at) for at in _find_numbers(sentence, answer))
        return is_told and not _DENIES.search(sentence)
    if not _NAME.search(answer):
        return False
    rivals = list(_find_names(sentence, answer))
    if not rivals or _DENIES.search(sentence):
        return False
    return is_turn or any(_is_asserted(sentence, *at) for at in rivals)


def _is_asserted(sentence: str, start: int, end: int) -> bool:
    before = sentence[max(0, start - _WINDOW) : start].strip(" \"'*_(")
    opens = not before or before[-1] in ",;:" or before.split()[-1].lower() in ("and", "that", "think", "then")
    if opens and _IS_SAID_OF.match(sentence, end):
        return True
    return bool(_SAID_TO_BE.search(sentence, max(0, start - _WINDOW), start) and _LAST.match(sentence, end))


def _is_number_asserted(sentence: str, start: int, end: int) -> bool:
    window = max(0, start - _WINDOW)
    is_said = not sentence[:start].strip(" \"'*_(") and _IS_SAID_OF.match(sentence, end)
    is_result = _LAST.match(sentence, end) and _RESULT.search(sentence, window, start)
    return bool(is_said or is_result or _SAID_NUMBER.search(sentence, window, start))


def _find_names(sentence: str, answer: str) -> Iterator[tuple[int, int]]:
    """Where the names of a sentence stand that share no word with the answer."""
    own = set(normalise(answer).split())
    for found in _NAME.finditer(sentence):
        words = normalise(found.group()).split()
        foreign = [word for word in words if word not in _NO_NAME | DOCUMENT_WORDS and word not in MONTHS]
        if foreign and not own.intersection(foreign) and len(foreign[0]) > 1:
            yield found.start() + found.group().lower().find(foreign[0][:2]), found.end()


def _scaled(digits: str) -> list[str]:
    """A number as a percentage and as a fraction."""
    if not re.fullmatch(r"\d+(?:\.\d+)?", digits):
        return []
    return [f"{Decimal(digits).scaleb(shift).normalize():f}" for shift in (2, -2)]


def _find_numbers(sentence: str, answer: str) -> Iterator[tuple[int, int]]:
    """Where the numbers stand that are not the answer's, and no year or the number of a clause or page."""
    own = set(re.findall(r"\d[\d.]*\d|\d", answer.replace(",", "")))
    for found in _NUMBER.finditer(sentence):
        digits = found.group().replace(",", "").strip("$£€¥+-.")
        before = sentence[: found.start()].split()[-1:] or [""]
        is_reference = before[0].lower().strip("(.") in DOCUMENT_WORDS or re.fullmatch(r"(?:19|20)\d\d", digits)
        if not own & {digits, *_scaled(digits)} and not is_reference:
            yield found.span()
