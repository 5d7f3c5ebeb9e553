"""Configuration loading on a small model of its own: overlays, --set, and what a user reads when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hybridflow.config.load import dump_resolved, load_config
from hybridflow.errors import ConfigError


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rules(Section):
    kind: Literal["rules"] = "rules"
    timeout_s: float = Field(default=1.0, gt=0)


class Judge(Section):
    kind: Literal["judge"]
    base_url: str
    num_retries: int = 3


class Stage(Section):
    name: str
    num_steps: int = Field(ge=1)


class Train(Section):
    num_steps: int = Field(default=10, ge=1)
    learning_rate: float = 1e-3
    dtype: Literal["float32", "bfloat16"] = "float32"
    megatron: dict[str, object] = {}


class Sample(Section):
    train: Train = Train()
    stages: list[Stage] = []
    reward: Annotated[Rules | Judge, Field(discriminator="kind")] = Rules()
    note: str = ""

    @model_validator(mode="after")
    def _check(self) -> Sample:
        if self.train.num_steps == 13:
            raise ValueError("train.num_steps is 13. Remedy: choose another number")
        return self


@pytest.fixture
def write(tmp_path: Path):
    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def failure(paths: list[Path], overrides: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(paths, overrides, Sample)
    return str(caught.value)


def test_overlays_merge_tables_and_replace_lists(write) -> None:
    base = write("base.toml", '[train]\nnum_steps = 3\nlearning_rate = 1e-6\n[[stages]]\nname = "a"\nnum_steps = 1\n')
    over = write(
        "over.toml", 'stages = [{name = "b", num_steps = 2}, {name = "c", num_steps = 3}]\n[train]\nnum_steps = 4\n'
    )
    config = load_config([base, over], [], Sample)
    assert config.train == Train(num_steps=4, learning_rate=1e-6)
    assert [stage.name for stage in config.stages] == ["b", "c"]


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("train.num_steps=5", lambda c: c.train.num_steps, 5),
        ("train.learning_rate=1e-6", lambda c: c.train.learning_rate, 1e-6),
        ("train.dtype=bfloat16", lambda c: c.train.dtype, "bfloat16"),
        ('train.dtype="bfloat16"', lambda c: c.train.dtype, "bfloat16"),
        ("stages.1.num_steps=7", lambda c: c.stages[1].num_steps, 7),
        ("train.megatron.fp8=true", lambda c: c.train.megatron, {"fp8": True}),
        ("note=a=b c", lambda c: c.note, "a=b c"),
        ("note=", lambda c: c.note, ""),
        ("reward.kind=rules", lambda c: c.reward, Rules()),
    ],
)
def test_set(write, override: str, read, expected: object) -> None:
    path = write("a.toml", 'stages = [{name = "a", num_steps = 1}, {name = "b", num_steps = 2}]\n')
    assert read(load_config([path], [override], Sample)) == expected


def test_last_set_wins() -> None:
    assert load_config([], ["train.num_steps=5", "train.num_steps=6"], Sample).train.num_steps == 6


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.num_steps", "not an assignment"),
        ("train..x=1", "not an assignment"),
        ("stages.2.name=x", "stages has 1 items, so no item 2"),
        ("stages.first.name=x", "'first' is no index"),
        ("train.num_steps.x=1", "train.num_steps is the value 3, not a table"),
        ("phases.0.name=x", "no file sets the list phases"),
        ("stages=[1,", "begins like TOML but is not"),
    ],
)
def test_set_that_cannot_be_placed(write, override: str, said: str) -> None:
    path = write("a.toml", 'stages = [{name = "a", num_steps = 1}]\n[train]\nnum_steps = 3\n')
    message = failure([path], [override])
    assert said in message and f"--set {override}" in message


def test_unknown_key_names_the_nearest_at_that_level_and_the_file(write) -> None:
    path = write("a.toml", "[train]\nnum_stps = 5\n")
    message = failure([path], [])
    assert f"train.num_stps = 5    [{path}]" in message
    assert "rule:   unknown key" in message
    assert "did you mean 'num_steps'? Known here: dtype, learning_rate, megatron, num_steps" in message


def test_unknown_table_in_a_list_and_at_the_root(write) -> None:
    path = write("a.toml", '[[stages]]\nname = "a"\nnum_steps = 1\nsteps = 2\n[trian]\nnum_steps = 1\n')
    message = failure([path], [])
    assert "2 problems" in message
    assert "stages.0.steps = 2" in message and "Known here: name, num_steps" in message
    assert "did you mean 'train'?" in message


def test_union_by_kind_hides_the_tag_in_the_key_path() -> None:
    message = failure([], ["reward.kind=judge", "reward.num_retry=4"])
    assert "\n  reward.base_url\n      rule:   required" in message
    assert "remedy: set it in a file, or with --set reward.base_url=..." in message
    assert "\n  reward.num_retry = 4    [--set reward.num_retry=4]" in message
    assert "did you mean 'num_retries'? Known here: base_url, kind, num_retries" in message


def test_unknown_and_absent_kind() -> None:
    assert "did you mean 'judge'?" in failure([], ["reward.kind=judg"])
    assert "remedy: set reward.kind" in failure([], ["reward.timeout_s=1"])


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("train.num_steps=0", "give a value of at least 1"),
        ("train.num_steps=many", "give a whole number"),
        ("train.num_steps=1.5", "give a whole number"),
        ("train.dtype=float23", "did you mean 'float32'?"),
        ("reward={kind='rules',timeout_s=0.0}", "give a value above 0.0"),
        ("train=3", "write it as a table"),
        ("stages=3", "give a list"),
        ("note=7", "put it in quotes"),
    ],
)
def test_each_rule_has_a_remedy(override: str, remedy: str) -> None:
    assert remedy in failure([], [override]).split("remedy:")[1]


def test_validator_of_a_section_splits_rule_and_remedy() -> None:
    message = failure([], ["train.num_steps=13"])
    assert "rule:   train.num_steps is 13.\n      remedy: choose another number" in message


def test_value_set_twice_is_blamed_on_the_last(write) -> None:
    path = write("a.toml", "[train]\nnum_steps = 5\n")
    assert "[--set train.num_steps=0]" in failure([path], ["train.num_steps=0"])


def test_missing_file_names_its_neighbours(write, tmp_path: Path) -> None:
    write("quickstart.toml", "")
    assert "Nearest in" in (message := failure([tmp_path / "quikstart.toml"], []))
    assert "quickstart.toml" in message
    assert "there is no folder" in failure([tmp_path / "nowhere" / "a.toml"], [])


def test_syntax_error_has_file_line_and_excerpt(write) -> None:
    path = write("a.toml", "[train]\nnum_steps = = 5\n")
    message = failure([path], [])
    assert message.startswith(f"{path}:2:13: not TOML")
    assert "num_steps = = 5" in message


def test_dump_is_complete_and_leaves_no_part(tmp_path: Path) -> None:
    path = tmp_path / "run" / "config.json"
    for num_steps in (5, 6):
        dump_resolved(load_config([], [f"train.num_steps={num_steps}"], Sample), path)
        assert json.loads(path.read_text())["train"]["num_steps"] == num_steps
    assert [file.name for file in path.parent.iterdir()] == ["config.json"]
    assert json.loads(path.read_text())["reward"] == {"kind": "rules", "timeout_s": 1.0}
