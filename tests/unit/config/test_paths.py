"""Relative paths: from the file that sets them where they exist there, else from the working folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybridflow.config.load import dump_resolved, load_config
from hybridflow.config.sections import Config
from hybridflow.errors import ConfigError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, with a configuration in `conf`, beside it a model."""
    (tmp_path / "conf" / "beside").mkdir(parents=True)
    (tmp_path / "working").mkdir()
    (tmp_path / "both").mkdir()
    (tmp_path / "conf" / "both").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(here: Path, path: str, *overrides: str, must_exist: bool = True) -> str:
    (here / "conf" / "a.toml").write_text(f'[model]\npath = "{path}"\n')
    return load_config([Path("conf/a.toml")], list(overrides), Config, paths_must_exist=must_exist).model.path


def test_beside_the_file_then_in_the_working_folder(here: Path) -> None:
    assert load(here, "beside") == str(here / "conf" / "beside")
    assert load(here, "working") == "working"
    assert load(here, "both") == str(here / "conf" / "both")
    assert load(here, str(here / "both")) == str(here / "both")
    assert load(here, "x", "model.path=both") == "both"


def test_home_is_found(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert load(here, "~/both") == load(here, "x", "model.path=~/both") == str(here / "both")


def test_a_path_of_the_command_line_that_is_beside_the_file_is_told(here: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(here, "both", "model.path=beside")
    assert f"'beside' [--set]: {here / 'beside'} does not exist, and --set is from the working folder" in str(
        caught.value
    )
    assert str(caught.value).endswith(f"Remedy: --set model.path={here / 'conf' / 'beside'}")


def test_pattern_and_file_in_the_working_folder(here: Path) -> None:
    (here / "conf" / "rows-1.jsonl").write_text("")
    (here / "a.toml").write_text(
        '[model]\npath = "both"\n[data]\ntrain_path = "conf/rows-*.jsonl"\n[eval]\nnum_prompts = 0'
    )
    config = load_config([Path("a.toml")], [], Config, paths_must_exist=True)
    assert (config.model.path, config.data.train_path) == ("both", "conf/rows-*.jsonl")


def test_error_shows_both_places(here: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(here, "besides")
    told = str(caught.value)
    assert (
        f"model.path = 'besides' [conf/a.toml]: neither {here / 'conf' / 'besides'} nor {here / 'besides'} exists"
        in told
    )
    assert f"did you mean {here / 'conf' / 'beside'}?" in told
    assert load(here, "besides", must_exist=False) == "besides"


def test_run_is_repeated_from_its_resolved_configuration(here: Path) -> None:
    """Paths in it are those of the run, from the working folder, also where the run folder has one of that name."""
    load(here, "both")
    first = load_config([Path("conf/a.toml")], ["train.num_steps=3"], Config)
    dump_resolved(first, here / "runs" / "run" / "resolved.json")
    assert load_config([Path("runs/run/resolved.json")], [], Config, paths_must_exist=True) == first
    (here / "runs" / "run" / "working").mkdir()
    dump_resolved(load_config([], ["model.path=working"], Config), here / "runs" / "run" / "resolved.json")
    again = load_config([Path("runs/run/resolved.json")], [], Config, paths_must_exist=True)
    assert again.model.path == "working" == json.loads(Path("runs/run/resolved.json").read_text())["model"]["path"]
