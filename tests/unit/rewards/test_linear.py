"""Time and memory of the rules on texts made to be slow: in proportion to their length, on the gold's side too.

CPU seconds, with bounds some ten times above what is needed: they tell a search that is quadratic, which takes minutes,
from one that is not.
"""

from __future__ import annotations

import gc
import importlib
import pkgutil
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from hybridflow import rewards
from hybridflow.types import ScoreRequest
from tests.unit.rewards.default_rules import verify

CHARS = " \n\taA19.,-*_()[]{}<>\\$%=+/|'\"`#:;!?&^~@½²\u2009\u200b\u00e9三万百的，。（🙂"
PARTS = [
    *(
        "the ",
        "the answer ",
        "the answer is ",
        "answer to ",
        "is ",
        "no ",
        "and ",
        "A or ",
        "(A) ",
        "A, ",
        "A is ",
        "option ",
    ),
    *(
        "1,",
        "1.",
        "1 ",
        "1/",
        "1e",
        "1,234",
        "1.000,",
        "12 345 ",
        "10^",
        "5% ",
        "$5 ",
        "5 million ",
        "five ",
        "twenty-",
    ),
    *(
        "in 2019 ",
        "in the ",
        "for the year ended ",
        "January ",
        "Jan. 1, ",
        "1963-01-",
        "see ",
        "as stated in ",
        "(see ",
        "[1]",
    ),
    *("\\frac{1}{2}", "\\frac{", "\\boxed{", "\\boxed{a}", "\\text{", "$a$", "$$", "{,}", "\\,", "<think>", "</think>"),
    *(
        "<answer>",
        "</answer>",
        "<b>",
        "</b>",
        "<b>a</b>",
        "<|im",
        "&amp;",
        "&#",
        "i choose ",
        "both ",
        "maybe ",
        "it is ",
    ),
    *(
        "could also ",
        "答案",
        "答案是",
        "选项",
        "3亿",
        "百分之三",
        "一二三",
        "U.S. ",
        "Mr. ",
        "a.b.",
        "\n- ",
        "\n1. ",
        "\n> ",
    ),
    *(
        "\n#### ",
        "(1)",
        "((",
        "'s ",
        "% ",
        "per ",
        " of ",
        "- ",
        "e\u0301",
        "x10^",
        "not (A) ",
        "A. ",
        ".5",
        "5 of ",
        "-a",
    ),
]
TEXTS = [*CHARS, *PARTS, *(f"{part}x" for part in CHARS), *(f"{part}5" for part in PARTS)]
TEXTS += [f"{one}{other}" for one in "( $\\<1a" for other in CHARS[:24]]
GOLDS = {"doc-qa": "Paris", "doc-math": "5", "doc-mc": "A"}


def find_patterns() -> dict[str, re.Pattern[str]]:
    """Every pattern of the rules, by module and name."""
    found: dict[str, re.Pattern[str]] = {}
    for module in pkgutil.walk_packages(rewards.__path__, f"{rewards.__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            for at, pattern in enumerate(_patterns_in(value)):
                found[f"{module.name.rpartition('.')[2]}.{name}.{at}"] = pattern
    return found


def _patterns_in(value: object) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict):
        yield from _patterns_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _patterns_in(item)


def repeat(part: str, num_chars: int) -> str:
    return part * (num_chars // len(part))


def measure(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def judge(ability: str, text: str, gold: str) -> float:
    request = ScoreRequest(completion_id="c", data_source="own", ability=ability, ground_truth=gold, text=text)
    return measure(lambda: verify(request))


def find_slow_patterns(texts: list[str], num_chars: int, most_s: float) -> list[tuple[str, str, float]]:
    slow = []
    for name, pattern in find_patterns().items():
        for part in texts:
            text = repeat(part, num_chars)
            taken = measure(
                lambda pattern=pattern, text=text: [pattern.match(text), sum(1 for _ in pattern.finditer(text))]
            )
            slow += [(name, part, taken)] if taken > most_s else []
    return slow


def test_no_pattern_is_slow_on_a_sample_of_hostile_texts() -> None:
    assert len(find_patterns()) > 150
    assert find_slow_patterns([" ", "1", "a", "(", "\n", "1,234"], 4_000, 0.3) == []


@pytest.mark.parametrize("ability", GOLDS)
@pytest.mark.parametrize("part", ["½", " ", "\n", "A, ", "the answer is ", "<b>"])
def test_a_long_text_is_judged_in_time(ability: str, part: str) -> None:
    text = repeat(part, 120_000)
    assert judge(ability, text, GOLDS[ability]) < 3.0
    assert judge(ability, f"the answer is {text}", GOLDS[ability]) < 3.0


@pytest.mark.parametrize("ability", GOLDS)
@pytest.mark.parametrize("part", ["%", "½"])
def test_a_long_gold_is_refused_in_time(ability: str, part: str) -> None:
    assert judge(ability, "the answer is 5", repeat(part, 500_000)) < 1.0


def test_long_texts_are_not_kept() -> None:
    judge("doc-qa", "the answer is Paris", "Paris")
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(6):
            judge("doc-qa", f"the answer is {number} " + "word " * 20_000, f"Paris {number} " + "word " * 1_000)
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert kept < 8 << 20


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_no_pattern_is_slow_on_any_hostile_text() -> None:
    assert len(TEXTS) >= 390
    assert find_slow_patterns(TEXTS, 6_000, 0.4) == []


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("ability", GOLDS)
def test_a_megabyte_of_a_hostile_text_is_judged_in_time(ability: str) -> None:
    """Every sixth text, other ones for each ability: all of them take half an hour."""
    slow = []
    for part in TEXTS[2 * list(GOLDS).index(ability) :: 6]:
        text = repeat(part, 1_000_000)
        for told, gold in (
            (text, GOLDS[ability]),
            (f"the answer is {text}", GOLDS[ability]),
            ("the answer is 5", text),
        ):
            taken = judge(ability, told, gold)
            slow += [(part, told[:20], taken)] if taken > 15.0 else []
    assert slow == []
