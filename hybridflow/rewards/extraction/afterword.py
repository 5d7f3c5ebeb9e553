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
"""

from __future__ import annotations

import re
from itertools import islice

from hybridflow.rewards.extraction.rivals import puts_forward_rival
from hybridflow.rewards.numbers.arithmetic import compute
from hybridflow.rewards.numbers.read_number import parse_quantity
from hybridflow.rewards.text.asides import is_empty, is_reference, is_source
from hybridflow.rewards.text.lexicon import word_set
from hybridflow.rewards.text.normalise import normalise, split_words
from hybridflow.rewards.text.sentences import split_sentences

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
"""What stands behind such a label is about the answer."""


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
