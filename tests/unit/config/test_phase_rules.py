"""Curricula that cannot be run as they stand: each is refused with its keys, their values and a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.errors import ConfigError

ROOT = Path(__file__).parents[3]


def load(phases: str, *overrides: str) -> Config:
    return load_config(
        [ROOT / "configs/quickstart.toml"], [f"curriculum.phases=[{phases}]", *overrides], Config, paths_must_exist=True
    )


NEXT = '{name="long", window=[100, 200]}'
PLATEAU = '{name="short", window=[0, 100], promotion="plateau"'
LATE = '{name="a", window=[0, 100], steps=25}, {name="b", window=[100, 200], promotion="plateau"'


@pytest.mark.parametrize(
    ("phases", "overrides", "words"),
    [
        (
            '{name="short", window=[0, 120], steps=5}, ' + NEXT,
            [],
            ["phases.1.window = [100, 200] of phase 'long'", "phases.0.window = [0, 120] of phase 'short' overlap",
             "remedy: curriculum.phases.1.window = [120, 200]"],
        ),
        (
            '{name="short", window=[0, 80], steps=5}, ' + NEXT,
            [],
            ["phases.1.window = [100, 200]", "leave out prompts of 81 to 100 tokens", "remedy: "],
        ),
        ('{name="short", steps=5}, ' + NEXT, [], ["'short' has no window, others have one", "remedy: "]),
        ('{name="short", window=[9, 9]}', [], ["phases.0.window = [9, 9] of phase 'short' is empty", "remedy: "]),
        ('{name="a", steps=5}, {name="a"}', [], ["two phases are named 'a'", "remedy: "]),
        ('{name="a", steps=5, epochs=2}', [], ["phases.0.steps (5) and curriculum.phases.0.epochs (2)", "remedy: "]),
        (
            '{name="short", window=[0, 100]}, ' + NEXT,
            [],
            ["phases.0.promotion = 'steps' of phase 'short' can never fire", "nor curriculum.phases.0.epochs is set"],
        ),
        (
            '{name="short", window=[0, 100], steps=30}, ' + NEXT,
            ["train.num_steps=30"],
            ["phases.1 ('long') never begins", "take 30 steps, and train.num_steps is 30", "remedy: "],
        ),
        (PLATEAU + "}, " + NEXT, [], ["'plateau' of phase 'short' can never fire: eval.every_steps is 0", "remedy: "]),
        (
            PLATEAU + "}, " + NEXT,
            ["eval.every_steps=5", "eval.num_prompts=0"],
            ["can never fire: eval.every_steps is 5 and eval.num_prompts is 0", "remedy: "],
        ),
        (
            PLATEAU + ", steps=10}, " + NEXT,
            ["eval.every_steps=5"],
            ["can never fire: within its 10 steps eval.every_steps = 5 gives at most 2", "needs 3", "remedy: "],
        ),
        (PLATEAU + ", steps=14}, " + NEXT, ["eval.every_steps=5"], ["within its 14 steps", "gives at most 2"]),
        (LATE + "}", ["eval.every_steps=3"], ["within its 5 steps, after 25, eval.every_steps = 3 gives at most 2"]),
        (
            '{name="a", window=[0, 100], steps=5, plateau_evaluations=3}, ' + NEXT,
            [],
            ["phases.0.plateau_evaluations (3) of phase 'a' with curriculum.phases.0.promotion = 'steps'", "remedy: "],
        ),
        (
            '{name="a", window=[100, 200], steps=5}, {name="b", window=[0, 100]}',
            [],
            ["phases.1.window = [0, 100]", "go from longer prompts to shorter", "remedy: order phases by length"],
        ),
        (
            '{name="a", window=[0, 200], steps=5}, {name="b", window=[0, 200]}',
            [],
            ["phases.1.window = [0, 200]", "overlap", "remedy: order phases by length"],
        ),
        (
            '{name="a", steps=5}',
            ["rollout.sglang={json_model_override_args='{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4}}'}"],
            ["rollout.sglang.json_model_override_args = ", "(rope_type = 'yarn') in the engines alone", "remedy: "],
        ),
        (
            '{name="short", window=[0, 20000]}',
            [],
            ["phases.0.window = [0, 20000] of phase 'short' ends above data.max_prompt_tokens (16000)", "remedy: "],
        ),
        (
            '{name="short", window=[0, 100], mini_batch_prompts=32}',
            [],
            ["phases.0 ('short'): curriculum.phases.0.mini_batch_prompts (32) is above train.prompts_per_step (16)",
             "remedy: ", "set by: curriculum.phases.0.mini_batch_prompts: --set curriculum.phases="],
        ),
        (
            '{name="short", window=[0, 100], max_tokens_per_micro_batch=64}',
            [],
            ["phases.0 ('short'): curriculum.phases.0.window.1 (100) + rollout.max_new_tokens (8) = 108 is above",
             "curriculum.phases.0.max_tokens_per_micro_batch (64)", "remedy: "],
        ),
        (
            '{name="short", window=[0, 100], train_path="configs/quickstart.toml"}',
            [],
            ["phases.0 ('short'): curriculum.phases.0.train_path is 'configs/quickstart.toml' and data.test_path"],
        ),
        (
            '{name="short", retrospective_share=0.2}',
            [],
            ["phases.0.retrospective_share = 0.2 of the first phase 'short': no phase is before it", "remedy: "],
        ),
        (
            '{name="a", steps=5}, {name="b", retrospective_share=0.6}',
            [],
            ["phases.1.retrospective_share = 0.6 of phase 'b' is above curriculum.retrospection.max_share (0.5)",
             "remedy: "],
        ),
        (
            '{name="a", steps=5, max_new_tokens=4}, {name="b"}',
            ["algorithm.aggregation=constant"],
            ["aggregation = 'constant' with algorithm.normaliser_tokens empty", "(a: 4, b: 8)", "remedy: "],
        ),
        ("", ["curriculum.task_balance=shares"], ["task_shares ({}) with curriculum.task_balance = 'shares'"]),
        ('{name="short", windows=[0, 100]}', [], ["phases.0.windows", "did you mean 'window'?"]),
        ('{name="short", window=[100]}', [], ["phases.0.window = [100]", "at least 2"]),
        ('{name="short", top_p=1.5}', [], ["phases.0.top_p = 1.5", "at most 1"]),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(phases: str, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load(phases, *overrides)
    text = str(error.value)
    assert not [word for word in words if word not in text], text


def test_a_rule_that_the_run_breaks_is_told_again_of_a_phase_that_sets_a_key_of_it_alone() -> None:
    long = '{name="long", window=[100, 200], steps=5}, {name="longest", window=[200, 300], max_new_tokens=900}'
    with pytest.raises(ConfigError) as error:
        load('{name="short", window=[0, 100], steps=5}, ' + long, "rollout.context_tokens=80")
    lines = [line.strip() for line in str(error.value).splitlines() if "rule:" in line]
    told = [
        "data.max_prompt_tokens (16000) + rollout.max_new_tokens (8)",
        "curriculum.phases.2 ('longest'): curriculum.phases.2.window.1 (300) + curriculum.phases.2.max_new_tokens "
        "(900)",
    ]
    assert [line.removeprefix("rule:").strip().partition(" = ")[0] for line in lines] == told


@pytest.mark.parametrize(
    ("phases", "overrides"),
    [
        ('{name="short", window=[0, 100], steps=29}, ' + NEXT, ["train.num_steps=30"]),
        (PLATEAU + ", steps=15}, " + NEXT, ["eval.every_steps=5"]),
        (LATE + "}", ["eval.every_steps=2"]),  # after 25 of 30 steps: 26, 28, 30
        ('{name="a"}', ['rollout.sglang={json_model_override_args=\'{"rope_parameters": {"rope_theta": 5.0}}\'}']),
        (PLATEAU + ", steps=40}, " + NEXT, ["eval.every_steps=5"]),
        ('{name="a", steps=5}, {name="b", retrospective_share=0.6}', ["curriculum.retrospection.max_share=0.6"]),
        ('{name="long", window=[100, 200]}', []),  # the second phase alone
        ('{name="short", window=[0, 100], epochs=1000}, ' + NEXT, []),  # how many steps that is the rows say
        ('{name="short", window=[0, 100], steps=40}, ' + NEXT, ["train.num_steps=0"]),  # the warm-up alone
    ],
)
def test_what_can_be_run_is_taken(phases: str, overrides: list[str]) -> None:
    assert load(phases, *overrides).curriculum.phases


def test_a_file_of_a_phase_is_found_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text("")
    file = tmp_path / "mine.toml"
    text = '[model]\npath="."\n[eval]\nnum_prompts=0\n[[curriculum.phases]]\nname="a"\nsteps=1\n'
    file.write_text(text + '[[curriculum.phases]]\nname="b"\ntrain_path="long.jsonl"\n')
    assert load_config([file], [], Config).curriculum.phases[1].train_path == str(tmp_path / "long.jsonl")
    file.write_text(text + '[[curriculum.phases]]\nname="b"\ntrain_path="lon.jsonl"\n')
    with pytest.raises(ConfigError, match=r"curriculum.phases.1.train_path = 'lon.jsonl'.*did you mean .*long.jsonl"):
        load_config([file], [], Config, paths_must_exist=True)
