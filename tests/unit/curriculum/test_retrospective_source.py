"""Retrospective prompts between fresh ones: never above the share, and the same after a resume at any point."""

from __future__ import annotations

import json
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridflow.curriculum.difficulty import DifficultyTable
from hybridflow.curriculum.retrospection import Retrospection
from hybridflow.curriculum.retrospective_source import RetrospectiveSource
from hybridflow.curriculum.source import ShuffledEpochs
from hybridflow.types import Group, Prompt
from tests.builders import build_group, build_prompt, build_request

EARLIER = [build_prompt(f"old{n}") for n in range(12)]
FRESH = [build_prompt(f"new{n}") for n in range(20)]


def observed(prompts: list[Prompt], rewards: list[list[float | None]]) -> list[Group]:
    return [
        build_group(build_request(prompt, len(of_group), group_id=f"g{n}"), of_group)
        for n, (prompt, of_group) in enumerate(zip(prompts, rewards, strict=True))
    ]


def table_of_earlier() -> DifficultyTable:
    table = DifficultyTable()
    table.observe(observed(EARLIER, [[float(n % 4 == 3), 0.0] for n in range(len(EARLIER))]))
    return table


def source_of(share: float, table: DifficultyTable | None = None, mode: Any = "weighted") -> RetrospectiveSource:
    return RetrospectiveSource(
        ShuffledEpochs(FRESH, ("fresh",)),
        EARLIER,
        table or table_of_earlier(),
        Retrospection(mode, 0.125),
        share=share,
        per_draw=2,
        stream=("hybridflow.retrospection", 7),
    )


def take(source: RetrospectiveSource, number: int) -> list[str]:
    return [prompt.prompt_id for prompt in source.next(number)]


@settings(deadline=None, max_examples=60)
@given(share=st.sampled_from([0.0, 0.1, 0.25, 0.29, 0.5, 0.99]), sizes=st.lists(st.integers(0, 9), max_size=12))
def test_never_above_the_share_whatever_the_sizes_of_steps(share: float, sizes: list[int]) -> None:
    source = source_of(share)
    walk = [prompt_id for size in sizes for prompt_id in take(source, size)]
    assert walk == take(source_of(share), sum(sizes))  # where steps begin does not matter
    num_earlier = 0
    for number, prompt_id in enumerate(walk, 1):
        num_earlier += prompt_id.startswith("old")
        assert num_earlier == int(number * round(share * 100)) // 100


def test_prompts_of_one_draw_differ_and_fresh_ones_keep_their_order() -> None:
    walk = take(source_of(0.5), 40)
    earlier = [prompt_id for prompt_id in walk if prompt_id.startswith("old")]
    assert len(earlier) == 20 and all(len(set(earlier[at : at + 2])) == 2 for at in range(0, 20, 2))
    fresh = [prompt.prompt_id for prompt in ShuffledEpochs(FRESH, ("fresh",)).next(20)]
    assert [prompt_id for prompt_id in walk if prompt_id.startswith("new")] == fresh


def test_a_harder_prompt_comes_back_more_often() -> None:
    """All-wrong ones weigh 8, those that are right half of the time 1.6."""
    counts = Counter(p for p in take(source_of(0.5), 8000) if p.startswith("old"))
    wrong = [counts[f"old{n}"] for n in range(12) if n % 4 != 3]
    half = [counts[f"old{n}"] for n in range(12) if n % 4 == 3]
    assert sum(wrong) / 9 == pytest.approx(5 * sum(half) / 3, rel=0.1)


def test_resumed_at_any_of_50_points_it_hands_out_the_same() -> None:
    """Groups are observed on the way, so that the table, saved beside the source, changes what comes."""

    def go_on(source: RetrospectiveSource, table: DifficultyTable, steps: range) -> list[list[str]]:
        walk = []
        for step in steps:
            prompts = source.next(3 + step % 4)
            random = Random(step)
            groups = observed(prompts, [[float(random.random() < 0.3), 0.0] for _ in prompts])
            table.observe(groups)
            source.observe(groups)
            walk.append([prompt.prompt_id for prompt in prompts])
        return walk

    table = table_of_earlier()
    source = source_of(0.3, table)
    saved: dict[int, str] = {}
    walk: list[list[str]] = []
    for step in range(60):
        saved[step] = json.dumps([source.state_dict(), table.state_dict()])
        walk += go_on(source, table, range(step, step + 1))
    for step in Random(1).sample(range(60), 50):
        of_source, of_table = json.loads(saved[step])
        table = DifficultyTable()
        table.load_state_dict(of_table)
        again = source_of(0.3, table)
        again.load_state_dict(of_source)
        assert go_on(again, table, range(step, 60)) == walk[step:], step


def test_an_all_wrong_prompt_uses_up_its_place_and_is_told() -> None:
    source = source_of(0.5, mode="zero_accuracy_only")
    prompts = source.next(4)
    source.observe(observed(prompts, [[0.0, None] if p.prompt_id.startswith("old") else [0.0, 0.0] for p in prompts]))
    assert source.metrics() == {
        "curriculum/retrospective_share": 0.5,
        "curriculum/retrospective_all_wrong_share": 0.5,
    }
    assert sum(prompt_id.startswith("old") for prompt_id in take(source, 4)) == 2  # and not more in their stead
    source.observe(observed([EARLIER[0], FRESH[0]], [[1.0, 0.0], [0.0, 0.0]]))
    assert source.metrics()["curriculum/retrospective_all_wrong_share"] == 0.0


def test_what_replaces_a_group_is_fresh_and_uses_up_no_place() -> None:
    """So a step keeps at most its share of earlier prompts, whichever of its groups are left out."""
    source, straight = source_of(0.5), source_of(0.5)
    fresh = iter(ShuffledEpochs(FRESH, ("fresh",)).next(60))
    for _ in range(6):
        batch = source.next(5)
        assert [p.prompt_id[:3] for p in batch] == [p.prompt_id[:3] for p in straight.next(5)]
        replaced = [*(p for p in batch if p in FRESH), *source.replace(batch)]
        assert [p.prompt_id for p in replaced] == [next(fresh).prompt_id for _ in replaced]


def test_a_place_that_nothing_can_be_drawn_for_goes_to_a_fresh_prompt() -> None:
    source = source_of(0.5, DifficultyTable())
    assert all(prompt_id.startswith("new") for prompt_id in take(source, 10))
    assert source.num_unfilled == 5


@pytest.mark.parametrize(("share", "per_draw"), [(-0.1, 1), (1.0, 1), (0.5, 0)])
def test_no_share_and_no_draw_is_refused(share: float, per_draw: int) -> None:
    fresh, rule = ShuffledEpochs(FRESH, ("f",)), Retrospection("weighted", 0.1)
    with pytest.raises(ValueError, match=f"share is {share} and per_draw {per_draw}"):
        RetrospectiveSource(fresh, EARLIER, DifficultyTable(), rule, share=share, per_draw=per_draw, stream=("s",))


@pytest.mark.parametrize(
    "changed",
    [{"num_taken": -1}, {"num_draws": True}, {"queue": None}, {"queue": ["x"]}, {"queue": [["x"]]}, {"fresh": {}}],
)
def test_a_state_that_is_none_is_refused(changed: dict[str, Any]) -> None:
    source = source_of(0.5)
    with pytest.raises(ValueError, match=r"expected|no prompt of an earlier phase"):
        source.load_state_dict(source.state_dict() | changed)
