"""`hybridflow config`: every key has a meaning, examples are valid, what is shown is what a run would take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from hybridflow.cli import app, mount_commands
from hybridflow.config.keys import list_keys
from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.errors import ConfigError
from hybridflow.tools.config_command import find_keys, list_examples, read_example
from hybridflow.tools.sft_config import SftConfig

EXAMPLE_ROOTS = {"sft": SftConfig}


def run(*arguments: str) -> str:
    mount_commands()
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("root", [Config, SftConfig])
def test_every_key_has_a_meaning_a_kind_and_a_default(root: type[BaseModel]) -> None:
    keys = list(list_keys(root))
    assert len({key.path for key in keys}) == len(keys) > 30
    assert [key.path for key in keys if len(key.meaning) < 5 or "\n" in key.meaning] == []
    assert [key.path for key in keys if not key.kind or not key.default] == []


def test_lines_of_a_key() -> None:
    named = {key.path: key for key in list_keys(Config)}
    assert named["reward.timeout_s"].lines() == [
        "reward.timeout_s  (number, above 0; default: 120.0; unit: seconds)",
        "    Longest wait for any verdict once decoding has ended.",
    ]
    assert named["model.path"].default == "required"
    assert named["model.dtype"].kind == '"float32" | "bfloat16"'
    assert named["rollout.kv_cache_tokens"].default == "default: empty"
    assert named["algorithm.normalise_std"].default == "default: true"
    assert named["warmup.stages.N.abstain_fraction"].unit == "share"
    sft = {key.path: key for key in list_keys(SftConfig)}
    assert sft["train.optimizer.beta2"].default == "default: 0.999"  # its own, not that of the section


def test_keys_of_a_section() -> None:
    told = run("config", "--keys", "train.layout")
    assert "train.layout.tp  (whole number, at least 1; default: 1)" in told and "rollout" not in told
    assert len(run("config", "--keys").splitlines()) == 2 * len(list(list_keys(Config)))
    assert [key.path for key in find_keys(Config, "warmup.stages.0.name")] == ["warmup.stages.N.name"]
    with pytest.raises(ConfigError, match=r"'reward.judg' \(did you mean 'reward.judge'\?\)"):
        find_keys(Config, "reward.judg")


@pytest.mark.parametrize("name", list_examples())
def test_examples_are_valid(name: str, tmp_path: Path) -> None:
    path = tmp_path / "example.toml"
    path.write_text(run("config", "--example", name))
    load_config([path], [], EXAMPLE_ROOTS.get(name, Config))
    assert name in read_example("list").split()


def test_example_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="did you mean 'judge'"):
        read_example("judges")


def test_what_is_shown_is_a_configuration_again(tmp_path: Path) -> None:
    shown = run("config", "--show", "configs/quickstart.toml", "--set", "train.num_steps=5")
    (tmp_path / "resolved.json").write_text(shown)
    assert json.loads(shown)["train"]["num_steps"] == 5
    again = load_config([tmp_path / "resolved.json"], [], Config)
    assert again == load_config([Path("configs/quickstart.toml")], ["train.num_steps=5"], Config)
    assert again.model_dump(mode="json") == json.loads(shown)


def test_version_is_printed() -> None:
    assert run("--version") == run("version")


@pytest.mark.parametrize("arguments", [[], ["--keys", "--example", "judge"], ["train"]])
def test_one_thing_is_asked_for(arguments: list[str]) -> None:
    mount_commands()
    with pytest.raises(ConfigError, match="one of --keys"):
        CliRunner().invoke(app, ["config", *arguments], catch_exceptions=False)
