"""Retrospective draws against the formula.

Worked by hand: means 0, 1/4, 3/8, 7/8 with epsilon 1/8 weigh 8, 8/3, 2, 1, together 41/3. Of 2 draws the first would
have 16 / (41/3) > 1, so it is certain, and the one draw left falls on the others with 8/17, 6/17 and 3/17.

Frequencies: where one of several is drawn, chi-square is that of independent draws. Where more are drawn without
replacement, counts vary less than independent ones with the same means, so the same bound is stricter than needed on
the one side, and each count is held against its own binomial deviation as well.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridflow.curriculum.difficulty import DifficultyTable
from hybridflow.curriculum.retrospection import Retrospection, compute_inclusion, draw_included
from tests.builders import build_group, build_prompt, build_request

EPSILON = 0.125
NUM_DRAWS = 200_000


def measured(means: dict[str, float]) -> tuple[list[str], DifficultyTable]:
    """Prompts, each measured with one completion of this reward."""
    table = DifficultyTable()
    table.observe([build_group(build_request(build_prompt(name)), [mean]) for name, mean in means.items()])
    return list(means), table


def p_value(counts: list[int], expected: list[float]) -> float:
    """Chi-square test with one degree of freedom less than there are counts."""
    statistic = math.fsum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))
    degrees = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(degrees, torch.tensor(statistic / 2, dtype=torch.float64)).item()


def test_weights_worked_by_hand() -> None:
    prompts, table = measured({"a": 0.0, "b": 0.25, "c": 0.375, "d": 0.875})
    weights = Retrospection("weighted", EPSILON).weigh(["never measured", *prompts], table)
    assert weights == pytest.approx({"a": 8.0, "b": 8 / 3, "c": 2.0, "d": 1.0})
    assert Retrospection("zero_accuracy_only", EPSILON).weigh(["never measured", *prompts], table) == {"a": 1.0}
    assert compute_inclusion(list(weights.values()), 1) == pytest.approx([24 / 41, 8 / 41, 6 / 41, 3 / 41])
    assert compute_inclusion(list(weights.values()), 2) == pytest.approx([1.0, 8 / 17, 6 / 17, 3 / 17])
    assert compute_inclusion(list(weights.values()), 4) == [1.0] * 4


@pytest.mark.parametrize("per_draw", [1, 3])
def test_frequencies_of_200_000_draws_are_the_formulas(per_draw: int) -> None:
    means = {f"p{n}": mean for n, mean in enumerate([0.0, 0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0])}
    prompts, table = measured(means)
    weights = list(Retrospection("weighted", EPSILON).weigh(prompts, table).values())
    assert weights == [1 / (mean + EPSILON) for mean in means.values()]
    inclusion = [per_draw * weight / sum(weights) for weight in weights]
    assert max(inclusion) < 1 and compute_inclusion(weights, per_draw) == pytest.approx(inclusion, rel=1e-12)
    random, counts, number = Random(5), Counter[int](), NUM_DRAWS // per_draw
    for _ in range(number):
        counts.update(draw_included(random, inclusion))
    found = [counts[place] for place in range(len(weights))]
    assert p_value(found, [number * share for share in inclusion]) > 0.01
    for count, share in zip(found, inclusion, strict=True):
        assert abs(count - number * share) < 4 * math.sqrt(number * share * (1 - share))


def test_drawing_one_after_the_other_would_not_be_the_formula() -> None:
    """The test above can tell: successive draws of two miss the inclusion probabilities by far."""
    weights = [8.0, 8 / 3, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    successive = [0.0] * len(weights)
    for chosen in combinations(range(len(weights)), 2):  # exact, for draws of two
        for first, second in (chosen, chosen[::-1]):
            total = sum(weights)
            probability = weights[first] / total * weights[second] / (total - weights[first])
            successive[first] += probability
            successive[second] += probability
    expected = compute_inclusion(weights, 2)
    assert p_value([round(50_000 * one) for one in successive], [50_000 * one for one in expected]) < 1e-6


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0.5, 8), max_size=12), st.integers(0, 14), st.integers(0, 99))
def test_as_many_different_ones_as_asked_for_or_as_there_are(weights: list[float], number: int, seed: int) -> None:
    inclusion = compute_inclusion(weights, number)
    chosen = draw_included(Random(seed), inclusion)
    assert len(chosen) == len(set(chosen)) == min(number, len(weights))
    assert math.fsum(inclusion) == pytest.approx(len(chosen))


def test_all_wrong_ones_come_equally_often_and_alone() -> None:
    prompts, table = measured({"a": 0.0, "b": 0.5, "c": 0.0, "d": 0.0, "e": 1.0})
    rule = Retrospection("zero_accuracy_only", EPSILON)
    counts = Counter(name for draw in range(3000) for name in rule.draw(("s", draw), 2, prompts, table))
    assert set(counts) == set("acd") and p_value(list(counts.values()), [2000.0] * 3) > 0.01
    assert set(rule.draw(("s", 0), 9, prompts, table)) == set("acd")
    assert rule.draw(("s", 0), 2, prompts, DifficultyTable()) == []


def test_a_stream_decides_the_draw() -> None:
    prompts, table = measured({f"p{n}": n / 40 for n in range(40)})
    rule = Retrospection("weighted", EPSILON)
    draws = [rule.draw(("s", seed), 5, prompts, table) for seed in (1, 2, 1)]
    assert draws[0] == draws[2] != draws[1]


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan])
def test_an_infinite_weight_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match=r"epsilon is .*infinite"):
        Retrospection("weighted", epsilon)
