"""The configuration that ships, and the rules that join two sections."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridflow.config.judge_section import JudgeSection
from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.errors import ConfigError
from hybridflow.tools.sft_config import SftConfig

CONFIGS = Path(__file__).parents[3] / "configs"
QUICKSTART = CONFIGS / "quickstart.toml"
ROOTS = {"sft.toml": SftConfig}
"""The kind of configuration of a file that is no training run's."""


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.toml")), ids=lambda path: path.name)
def test_every_config_that_ships_is_valid(path: Path) -> None:
    load_config([path], [], ROOTS.get(path.name, Config))


def test_quickstart_is_the_job_that_it_says() -> None:
    config = load_config([QUICKSTART], [], Config)
    assert [stage.name for stage in config.warmup.stages] == ["skill", "habit"]
    assert (config.train.num_steps, config.train.layout.world_size) == (30, 2)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["data.max_prompt_tokens=500", "rollout.max_new_tokens=20", "rollout.context_tokens=512"],
            [
                "data.max_prompt_tokens (500)", "rollout.max_new_tokens (20)", "= 520", "rollout.context_tokens (512)",
                "remedy: lower one of the first two",
            ],
        ),
        (
            ["data.max_prompt_tokens=500", "rollout.max_new_tokens=20", "train.max_tokens_per_micro_batch=512"],
            [
                "data.max_prompt_tokens (500)", "rollout.max_new_tokens (20)", "= 520",
                "train.max_tokens_per_micro_batch (512)", "remedy: raise the budget",
            ],
        ),
        (
            ['reward.judge.endpoints=["http://h:1"]', "reward.judge.deadline_s=120"],
            ["reward.judge.deadline_s (120)", "reward.timeout_s (120)", "remedy: lower the first"],
        ),
        (
            ["reward.overlong.buffer_tokens=9", "rollout.max_new_tokens=8"],
            ["reward.overlong.buffer_tokens (9)", "rollout.max_new_tokens (8)", "remedy: lower the first"],
        ),
    ],
    ids=["window", "budget", "judge and wait", "overlong buffer and limit"],
)  # fmt: skip
def test_rules_across_sections(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([QUICKSTART], overrides, Config)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        ("http://h:30000", "http://h:30000/v1"),
        ("http://h:30000/", "http://h:30000/v1"),
        ("http://h:30000/v1/", "http://h:30000/v1"),
        ("https://h/api/v3/chat/completions", "https://h/api/v3"),
    ],
)
def test_urls_of_a_judge_are_completed(given: str, completed: str) -> None:
    assert JudgeSection(endpoints=[given]).endpoints == [completed]
