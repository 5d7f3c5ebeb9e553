"""The words that rules know: those that change nothing about an answer, and those that make another one of it."""

from __future__ import annotations


def word_set(names: str) -> frozenset[str]:
    """The words of some lines of text."""
    return frozenset(names.split())


NEUTRAL = word_set(
    """it its is was were are be been being this that these those there they he she we i his her their our my who which
    has have had did does do would will should shall must namely simply exactly precisely clearly definitely certainly
    obviously just called named known titled entitled so therefore hence thus indeed ie here probably likely presumably
    think believe say in at on by to for with as
    是 为 在 即 就是 应为 应该是 位于 叫 名为 共 共有"""
)
"""Before an answer in words: they carry none of their own, and change nothing about what follows."""

PLACES = word_set("city town village municipality state country kingdom province county district")
TITLES = word_set("mr mrs ms dr prof sir professor")
CLASS_NOUNS = (
    PLACES
    | TITLES
    | word_set(
        """company firm amount sum total year month date name word term currency value figure number result version
    answer"""
    )
)
"""Before an answer in words, name its kind: "the city of Montreal", "the year 2019", "Mr. Smith", "the total is"."""

LEGAL_FORMS = word_set(
    "inc incorporated corp corporation ltd limited llc llp plc gmbh ag sa nv bv ab asa oyj spa co kk"
)
"""Behind the name of a company."""

MEASURED = word_set(
    """answer total totals totaled totalled sum amount amounts amounted value values result figure number count net
    gross
    overall annual yearly quarterly monthly fiscal revenue revenues income sales profit profits earnings cost costs
    expense expenses assets liabilities equity debt cash dividend dividends ratio rate margin average mean price rent
    fee
    percentage percent share balance growth increase increased increases rose risen rises grew grown gained gain change
    changed difference year company group operating interest tax basic diluted of the by to at equal equals
    approximately
    approx about around roughly circa ca some say estimated only us comes came stands stood works out reached reach
    term period length duration
    reported reports recorded paid pays earned held owned worth up"""
) - word_set("up")
"""Before a number, beside NEUTRAL: name the quantity, and leave the number as it is."""

SMALL_WORDS = word_set(
    """full whole entire complete total overall altogether in all only exactly each approximately respectively rounded
    approx roughly"""
)
"""Behind a number: change nothing."""

NEGATIONS = word_set(
    """not no non never neither nor none nothing without except excluding unlike isnt wasnt arent werent dont doesnt
    didnt cant cannot wont nt but rather instead wrong incorrect false unknown unclear unsure ex anti
    不 非 不是 并非 没有 而非"""
)
"""Turn an answer round, or take it back."""

ALTERNATIVES = word_set(
    "or and plus versus vs either both maybe possibly perhaps alternatively also else 和 或 或者 与 及 以及 还是"
)
"""Join a second answer to the first."""

SIGN_WORDS = word_set(
    """minus negative loss losses decrease decreased decreases decreasing decline declined declines fall fell drop
    dropped down lower reduction reduced deficit shortfall"""
)
"""Beside a number: whether it is below zero cannot be told, unless its own sign says so."""

COMPARISONS = word_set(
    """less more greater fewer over under above below least most up within between beyond until almost nearly than
    half twice double doubled triple thrice third quarter times square root power another other"""
)
"""Before a number: another quantity than the number itself."""

PARTS = word_set(
    """dozen dozens squared cubed factorial half halves third thirds fourth fourths fifth fifths sixth sixths seventh
    sevenths eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth thousandths millionth millionths
    score scores tens gross pair pairs"""
)
"""Directly behind a number: it is another one."""

SCALES = {
    "hundred": 2, "thousand": 3, "lakh": 5, "lac": 5, "million": 6, "mn": 6, "mln": 6, "mil": 6, "mio": 6, "crore": 7,
    "billion": 9, "bn": 9, "bln": 9, "mrd": 9,
    "trillion": 12, "tn": 12,
    "百": 2, "千": 3, "万": 4, "百万": 6, "千万": 7, "亿": 8, "十亿": 9,
    "百亿": 10, "千亿": 11, "万亿": 12, "兆": 12,
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
    return word.removesuffix("s") in SCALES or word.startswith(("百", "千", "万", "亿", "兆"))
