"""Values that are none, and files that cost more than they hold: refused with key and file, in no time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.errors import ConfigError

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.toml"


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("train.learning_rate=true", "give a number"),
        ("train.num_steps=true", "give a whole number"),
        ('train.num_steps="5"', "give a whole number"),
        ('rollout.temperature="1.0"', "give a number"),
        ("train.learning_rate=inf", "give a finite number"),
        ("rollout.temperature=inf", "give a finite number"),
        ("rollout.temperature=nan", "give a"),
        ("reward.timeout_s=inf", "give a finite number"),
        ("algorithm.normalise_std=1", "give true or false"),
        ('algorithm.normalise_std="true"', "give true or false"),
        ("run.seed=9223372036854775808", "64 bits"),
        ("run.seed=18446744073709551616", "64 bits"),
        ("run.seed=-1", "at least 0"),
        ("run.name=5", "put it in quotes"),
        ("run.name=" + "a" * 300, "at most 128 characters"),
        ("run.name=2024-01-01", "put it in quotes"),
        ("train=5", "write it as a table"),
        ("data.train_path=", "name a file or folder, or leave the key out"),
        ("model.path=", "name a file or folder"),
        ("run.directory=", "name a file or folder"),
        (r'model.path="a\u0000b"', "name a file or folder"),
        ('rollout.stop=[""]', "at least 1 char"),
        ("rollout.temperature=1e-8", "at least 0.001"),
        ("train.num_steps=" + "9" * 5000, "digits"),
        ("train.num_steps=1e400", "give a whole number"),
        ("train.learning_rate=1e400", "give a finite number"),
        ("warmup.stages.\u00b2.name=a", "is no index"),
        (f"warmup.stages.{'1' * 5000}.name=a", "no item"),
        (".".join(["a"] * 20_000) + "=1", "more than 32 parts"),
        ("rollout.sglang=" + "[" * 20_000, "more than 32 deep"),
        ("rollout.sglang={" + ".".join(["a"] * 20_000) + "=1}", "more than 32 parts"),
    ],
)
def test_no_value_of_this_key(override: str, remedy: str) -> None:
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_config([QUICKSTART], [override], Config)
    told = str(caught.value)
    assert remedy in told and f"--set {override}"[:100] in told and len(told) < 2000
    assert time.process_time() - began < 2.0


def test_whole_number_is_a_number_and_the_largest_seed_is_one() -> None:
    config = load_config([QUICKSTART], ["rollout.temperature=1", "run.seed=9223372036854775807"], Config)
    assert (config.rollout.temperature, config.run.seed) == (1.0, 2**63 - 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (".".join(["a"] * 20_000) + " = 1", "more than 32 parts"),
        ("a = " + "[" * 20_000, "more than 32 deep"),
        ("a = " + "{a = " * 20_000, "more than 32 deep"),
        ("train = {num_steps = " + "9" * 5000 + "}", "digits"),
        ("[train]\nnum_steps = 99999999999999999999", "train.num_steps = 99999999999999999999: a whole number"),
        ("\n".join(f"key{number} = 1" for number in range(50_000)), "and 49970 more"),
        ("x" * 2_000_000, "more than 1048576 bytes"),
        ("a = " + "x" * 1_000_000, "not TOML"),
    ],
)
def test_file_that_costs_more_than_it_holds(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "a.toml").write_text(content)
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_config([QUICKSTART, tmp_path / "a.toml"], [], Config)
    assert said in str(caught.value) and str(tmp_path / "a.toml") in str(caught.value)
    assert len(str(caught.value)) < 10_000 and time.process_time() - began < 5.0


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"train": {"num_steps": ' + "9" * 5000 + "}}", "[1]", "{", '{"run": {}, "run": {}}']
)
def test_resolved_that_cannot_be_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "resolved.json").write_text(content)
    with pytest.raises(ConfigError, match=r"resolved\.json: "):
        load_config([tmp_path / "resolved.json"], [], Config)


def test_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbf" + b"[train]\r\nnum_steps = 7\r\n")
    assert load_config([QUICKSTART, tmp_path / "a.toml"], [], Config).train.num_steps == 7


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[warmup.stages]\nname = 'x'", "give a list"),
        ("[train.num_steps]\nx = 1", "give a whole number"),
        ("[[train]]\nnum_steps = 1", "write it as a table"),
        ('["tr\u00e4in"]\nx = 1', "did you mean 'train'"),
    ],
)
def test_the_file_of_a_table_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "a.toml").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config([QUICKSTART, tmp_path / "a.toml"], [], Config)
    assert said in str(caught.value) and f"[{tmp_path / 'a.toml'}]" in str(caught.value)


def test_the_home_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config([QUICKSTART], ["run.directory=~/runs", "model.path=~/model"], Config)
    assert (config.run.directory, config.model.path) == (f"{tmp_path}/runs", f"{tmp_path}/model")


@pytest.mark.parametrize("override", ["train.layout.dp=3", "train.layout.dp=7"])
def test_rows_need_not_divide_by_data_parallel_ranks(override: str) -> None:
    load_config([QUICKSTART], [override, "train.layout.tp=1"], Config)
