"""Phases: prompts of the present window alone, promotion by steps and plateau, and on from any point of a run."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridflow.config.curriculum_section import CurriculumSection
from hybridflow.config.phases import phase_config
from hybridflow.config.sections import Config
from hybridflow.curriculum.build import build_curriculum
from hybridflow.curriculum.phases import Phase, PhasedSource, Plateau
from hybridflow.curriculum.retrospection import Retrospection
from hybridflow.curriculum.windows import build_phases, count_outside, is_in
from hybridflow.errors import ConfigError
from hybridflow.types import Group, Prompt
from tests.builders import build_group, build_prompt, build_request

SHORT = [build_prompt(f"s{n}") for n in range(5)]
LONG = [build_prompt(f"l{n}") for n in range(3)]
OTHERS = [build_prompt(f"o{n}") for n in range(4)]


def source_of(*phases: Phase, seed: int = 0) -> PhasedSource:
    rule = Retrospection("zero_accuracy_only", 0.125)
    return PhasedSource(phases or [Phase("short", SHORT, 7), Phase("long", LONG, 4)], ("order", seed), rule)


def groups_of(prompts: list[Prompt]) -> list[Group]:
    """The prompts whose number is even are all wrong, the others half right."""
    requests = [build_request(prompt, 2, group_id=f"g{n}") for n, prompt in enumerate(prompts)]
    return [build_group(one, [0.0, float(int(one.prompt.prompt_id[1:]) % 2)]) for one in requests]


def step(source: PhasedSource, num_prompts: int = 2, accuracy: float | None = None) -> list[str]:
    """One step, as the loop makes it."""
    prompts = source.next(num_prompts)
    taken = [prompt.prompt_id for prompt in prompts]
    source.observe(groups_of(prompts))
    source.observe_evaluation(accuracy)
    source.advance()
    return taken


def test_each_phase_trains_its_steps_on_its_own_prompts_and_then_the_run_is_over() -> None:
    source = source_of()
    walks = []
    while not source.is_over:
        walks.append(step(source))
    first, second = list(chain(*walks[:7])), list(chain(*walks[7:]))
    assert len(walks) == 11 and (source.steps_done, source.endings) == ([7, 4], ["steps", "steps"])
    assert {one[0] for one in first} == {"s"} and {one[0] for one in second} == {"l"}
    for whole, size in ((first[:10], 5), (second[:6], 3)):  # two epochs of each
        assert len(set(whole[:size])) == len(set(whole[size:])) == size


def test_a_resume_at_any_of_50_points_gives_the_same_prompts() -> None:
    stream = random.Random(3)
    sizes = [stream.randint(1, 4) for _ in range(60)]
    values = [stream.choice([None, 0.25, 0.5, 0.75]) for _ in sizes]
    phases = [
        Phase("a", SHORT, 20, Plateau(4, 0.1)),
        Phase("b", LONG, None, Plateau(3, 0.0), share=0.4, per_draw=2),
        Phase("c", OTHERS, 80, share=0.3, per_draw=1),
    ]
    straight = source_of(*phases)
    walk = [step(straight, size, value) for size, value in zip(sizes, values, strict=True)]
    for stop in stream.sample(range(60), 50):
        before, after = source_of(*phases), source_of(*phases)
        for size, value in zip(sizes[:stop], values[:stop], strict=True):
            step(before, size, value)
        after.load_state_dict(before.state_dict())
        rest = [step(after, size, value) for size, value in zip(sizes[stop:], values[stop:], strict=True)]
        assert rest == walk[stop:] and after.state_dict() == straight.state_dict()
    assert straight.number == 2


@pytest.mark.parametrize(
    ("accuracies", "num_steps"),
    [
        ([0.5, 0.5, 0.5], 3),  # the first to compare with, then two that are not better
        ([0.5, 0.58, 0.4], 3),  # better by less than the margin is not better
        ([0.2, 0.4, 0.4, 0.6, 0.6, 0.6], 6),  # better ones begin the count again
        ([0.5, None, None, 0.5, None, 0.5], 6),  # an evaluation without a verdict says nothing
    ],
)
def test_a_plateau_is_so_many_evaluations_that_are_not_better(accuracies: list[float | None], num_steps: int) -> None:
    source = source_of(Phase("a", SHORT, None, Plateau(2, 0.1)), Phase("b", LONG, None))
    for number, accuracy in enumerate(accuracies, start=1):
        assert source.number == 0
        step(source, accuracy=accuracy)
        assert source.number == (number == num_steps)
    assert source.endings == ["plateau"] and source.steps_done == [num_steps, 0]


def test_steps_end_a_phase_before_its_plateau() -> None:
    source = source_of(Phase("a", SHORT, 2, Plateau(2, 0.0)), Phase("b", LONG, None))
    step(source, accuracy=0.1)
    step(source, accuracy=0.2)
    assert source.endings == ["steps"] and not source.is_over


def test_a_plateau_in_the_last_step_is_one() -> None:
    source = source_of(Phase("a", SHORT, 3, Plateau(2, 0.0)), Phase("b", LONG, None))
    for _ in range(3):
        step(source, accuracy=0.5)
    assert source.endings == ["plateau"]


def test_the_steps_of_all_phases_are_known_as_far_as_each_has_a_number() -> None:
    """A plateau ends the first before its 7 steps: what is done counts for it. Epochs count rows: 3 in steps of 2."""
    last = Phase("long", LONG, None, num_epochs=1, own_per_step=Fraction(2))
    source = source_of(Phase("short", SHORT, 7, Plateau(1, 0.0)), last)
    assert source.num_steps_of_all == 7 + 2
    for accuracy in (0.5, 0.5):
        step(source, accuracy=accuracy)
    assert (source.number, source.num_steps_of_all) == (1, 2 + 2)
    assert source_of(Phase("short", SHORT, 7), Phase("long", LONG, None)).num_steps_of_all is None


def test_metrics_tell_the_phase_its_step_and_its_epochs() -> None:
    source = source_of()
    for _ in range(8):
        source.next(2)
        source.observe([])
        metrics = source.take_metrics()
        source.advance()
    assert metrics == {"curriculum/phase": 2.0, "curriculum/phase_step": 1.0, "curriculum/epochs": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"steps_done": []},
        {"steps_done": [-1]},
        {"steps_done": [1, 2, 3], "endings": ["steps", "steps"]},
        {"steps_done": [1, 2]},
        {"steps_done": [1], "num_own": "x"},
        {"steps_done": [1], "difficulty": {"prompts": {}}, "walk": {"num_taken": -1}},
        {"steps_done": [1], "other": 1},
    ],
)
def test_a_state_that_is_none_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected "):
        source_of().load_state_dict(state)


def test_all_wrong_prompts_of_earlier_phases_come_back_at_their_share() -> None:
    """A quarter of the prompts of the second phase are of the first, and were all wrong in it."""
    source = source_of(Phase("short", SHORT, 5), Phase("long", LONG, None, share=0.25, per_draw=1))
    for _ in range(5):
        step(source)
    taken = [step(source, 4) for _ in range(10)]
    assert [sum(one[0] == "s" for one in batch) for batch in taken] == [1] * 10
    assert {one for batch in taken for one in batch if one[0] == "s"} <= {"s0", "s2", "s4"}
    metrics = source.take_metrics()
    assert metrics["curriculum/retrospective_share"] == metrics["curriculum/retrospective_all_wrong_share"] == 0.25
    assert metrics["curriculum/epochs"] == 10  # 30 of its own prompts, which are 3
    rows = source.difficulty.rows(source.rule.epsilon)
    assert [row["prompt_id"] for row in rows][:2] == ["l0", "l2"] and rows[0]["difficulty"] == 8.0


def test_a_filter_by_difficulty_leaves_out_what_is_too_hard_and_goes_on_after_a_resume() -> None:
    """Odd prompts are half right, even ones all wrong; two epochs of the two that are left are four steps of one."""
    phases = [Phase("a", SHORT, None, num_epochs=2, bounds=(0.25, 0.75)), Phase("b", LONG, None, bounds=(0.9, 1.0))]
    source, again = source_of(*phases), source_of(*phases)
    assert (source.to_measure, source.num_steps) == (SHORT, 10)
    assert source.filter_prompts(groups_of(list(source.to_measure))) == {"too_hard": ["s0", "s2", "s4"]}
    assert (source.to_measure, source.num_steps) == ([], 4)
    again.load_state_dict(source.state_dict())
    walks = [[step(one, 1)[0] for _ in range(4)] for one in (source, again)]
    assert walks[0] == walks[1] and sorted(walks[0]) == ["s1", "s1", "s3", "s3"]
    assert source.number == 1 and source.to_measure == LONG
    assert len(source.filter_prompts(groups_of(LONG))["too_hard"]) == 3, "nothing would be left"
    assert {one for _ in range(3) for one in step(source, 1)} == {"l0", "l1", "l2"}


def phased(*phases: dict[str, Any], num_steps: int = 100, every_steps: int = 0, **curriculum: Any) -> Config:
    values = {
        "model": {"path": "m"},
        "data": {"max_prompt_tokens": 100},
        "eval": {"num_prompts": 4 if every_steps else 0, "every_steps": every_steps},
        "train": {"num_steps": num_steps, "prompts_per_step": 4},
        "curriculum": {"phases": list(phases), **curriculum},
    }
    return Config.model_validate(values)


def prompts_of(*lengths: int) -> dict[str | None, list[Prompt]]:
    return {None: [build_prompt(f"p{n}", token_ids=[1] * length) for n, length in enumerate(lengths)]}


@settings(max_examples=60)
@given(cuts=st.lists(st.integers(0, 90), min_size=2, max_size=5, unique=True), lengths=st.lists(st.integers(1, 100)))
def test_windows_neither_overlap_nor_leave_gaps(cuts: list[int], lengths: list[int]) -> None:
    cuts.sort()
    windows = [[low, high] for low, high in pairwise(cuts)]
    section = CurriculumSection.model_validate(
        {"phases": [{"name": f"p{n}", "window": window, "steps": 1} for n, window in enumerate(windows)]}
    )
    for length in lengths:
        assert sum(is_in(phase, length) for phase in section.phases) == (cuts[0] < length <= cuts[-1])


def test_a_prompt_is_in_the_window_that_it_fills_to_the_last_token() -> None:
    config = phased({"name": "short", "window": [2, 10], "steps": 3}, {"name": "long", "window": [10, 20]})
    prompts = prompts_of(2, 3, 10, 11, 20, 21)
    phases = build_phases(config, prompts)
    assert [[p.prompt_id for p in phase.prompts] for phase in phases] == [["p1", "p2"], ["p3", "p4"]]
    assert count_outside(config, prompts) == 2


def test_epochs_are_whole_steps_of_the_phase() -> None:
    """Seven prompts, three epochs: 21, in steps of 4 and of 3."""
    first = {"name": "a", "window": [0, 10], "epochs": 3}
    config = phased(first, {"name": "b", "window": [10, 20], "epochs": 3, "prompts_per_step": 3})
    phases = build_phases(config, prompts_of(*[5] * 7, *[15] * 7))
    assert [phase.count_steps(7) for phase in phases] == [6, 7]
    with pytest.raises(
        ConfigError, match=r"curriculum.phases.1 \('b'\) never begins: .* take 6 steps, .* is 6. Remedy"
    ):
        build_phases(phased(*[phase.model_dump(exclude_none=True) for phase in config.curriculum.phases], num_steps=6),
                     prompts_of(*[5] * 7, *[15] * 7))  # fmt: skip


def test_epochs_that_are_too_short_for_a_plateau_are_refused() -> None:
    """Seven prompts in steps of 4: two steps an epoch, and an evaluation each second step."""
    plateau = {"name": "a", "promotion": "plateau", "plateau_evaluations": 1}
    enough, short = (phased(plateau | {"epochs": epochs}, {"name": "b"}, every_steps=2) for epochs in (2, 1))
    build_phases(enough, prompts_of(*[5] * 7))
    with pytest.raises(ConfigError, match=r"phases.0.promotion = 'plateau' .* its 2 steps .*at most 1 .*needs 2"):
        build_phases(short, prompts_of(*[5] * 7))


def test_a_window_without_rows_is_refused_with_the_counts_of_all() -> None:
    config = phased(
        {"name": "a", "window": [0, 10], "steps": 3},
        {"name": "b", "window": [10, 20], "steps": 3},
        {"name": "c", "window": [20, 40]},
    )
    with pytest.raises(
        ConfigError,
        match=r"curriculum.phases.2 \('c'\): none of the 3 rows of data.synth .* window \[20, 40\]: they have 4 to 12 "
        r"tokens. Rows per window: a \(0, 10\]: 2, b \(10, 20\]: 1, c \(20, 40\]: 0. Remedy: ",
    ):
        build_phases(config, prompts_of(4, 5, 12))


def test_what_a_phase_sets_is_laid_over_the_run(tmp_path: Path) -> None:
    changed = {"prompts_per_step": 3, "mini_batch_prompts": 2, "max_tokens_per_micro_batch": 500, "num_completions": 5}
    drawn = {"max_new_tokens": 8, "temperature": 0.5, "top_p": 0.75}
    config = phased({"name": "a", "window": [0, 60], "train_path": str(tmp_path), "steps": 1, **changed, **drawn},
                    {"name": "b", "window": [60, 90]})  # fmt: skip
    first, second = phase_config(config, 0), phase_config(config, 1)
    assert {key: getattr(first.train, key) for key in list(changed)[:3]} == dict(list(changed.items())[:3])
    assert {key: getattr(first.rollout, key) for key in drawn} == drawn
    assert first.algorithm.num_completions == 5
    assert (first.data.max_prompt_tokens, first.data.train_path) == (60, str(tmp_path))
    assert second == config.model_copy(update={"data": config.data.model_copy(update={"max_prompt_tokens": 90})})
    plain = phased()
    assert phase_config(plain, 0) is plain


def test_epochs_count_the_prompts_of_the_phase_alone() -> None:
    """Seven prompts, a quarter of each step of 4 from the phase before: 3 a step."""
    config = phased({"name": "a", "window": [0, 10], "steps": 3},
                    {"name": "b", "window": [10, 20], "epochs": 3, "retrospective_share": 0.25})  # fmt: skip
    phase = build_phases(config, prompts_of(*[5] * 2, *[15] * 7))[1]
    assert (phase.count_steps(7), phase.share, phase.per_draw) == (7, 0.25, 1)


def test_replacements_are_in_the_epochs() -> None:
    source = source_of()
    prompts = source.replace(source.next(3))
    source.observe(groups_of(prompts))
    assert source.take_metrics()["curriculum/epochs"] == 6 / len(SHORT)
    again = source_of()
    again.load_state_dict(source.state_dict())
    assert again.replace(prompts) == source.replace(prompts)


class Rows:
    """Rows of a file, by task."""

    name = "train"

    def __init__(self, **counts: int) -> None:
        self.prompts = [build_prompt(f"{task}-{n}", data_source=task) for task in counts for n in range(counts[task])]

    def digest(self) -> str:
        return "rows"


@pytest.mark.parametrize("phases", [[], [{"name": "a", "steps": 5}, {"name": "b"}]])
def test_batches_are_balanced_by_task_with_and_without_phases(phases: list[dict[str, Any]]) -> None:
    """Rows of 8:1:1, shares of 2:1:1, batches of 10: 5 and 2 or 3 of each."""
    config = phased(*phases, task_balance="shares", task_shares={"math": 2, "qa": 1, "choice": 1})
    source = build_curriculum(config, {None: Rows(math=80, qa=10, choice=10)}).source  # type: ignore[dict-item]
    for _ in range(20):
        tasks = [prompt.data_source for prompt in source.next(10)]
        assert tasks.count("math") == 5 and {tasks.count("qa"), tasks.count("choice")} == {2, 3}
    unknown = phased(*phases, task_balance="shares", task_shares={"math": 2, "code": 1})
    with pytest.raises(ConfigError, match=r"curriculum.task_shares = .*: tasks code have a share and no row.*Remedy: "):
        build_curriculum(unknown, {None: Rows(math=8)})  # type: ignore[dict-item]
