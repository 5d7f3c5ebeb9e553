"""The directory of a reference: what is refused before anything starts, and what is warned of."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.errors import ConfigError
from hybridflow.policy.init import write_policy
from hybridflow.preflight.model import check_reference_folder
from hybridflow.preflight.reference import check_reference_model
from hybridflow.preflight.subject import Subject

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs/models/tiny"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same architecture and tokenizer as model.path."""
    folder = tmp_path_factory.mktemp("models") / "other"
    write_policy(TINY, folder, seed=1)
    return folder


def config_with(reference: object, **kl: object) -> Config:
    values = {"place": "loss", "coefficient": 0.1, "reference": str(reference), "estimator": "k3"} | kl
    settings = [f"algorithm.kl.{key}={json.dumps(value)}" for key, value in values.items()]
    return load_config([ROOT / "configs/quickstart.toml"], [f"model.path={TINY}", *settings], Config)


def changed(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def other_positions(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("rope_parameters", None)
    path.write_text(json.dumps(config | {"rope_theta": 123.0}))


def rename_token(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokenizer))


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "another shape": (
        changed(intermediate_size=96),
        "ffn_hidden_size = 96 there, .* in model.path.*Remedy: name a directory",
    ),
    "other positions": (other_positions, "rope_theta = 123.0 there, .* in model.path"),
    "another norm": (changed(rms_norm_eps=0.5), "rms_norm_eps = 0.5 there"),
    "a tensor that is not there": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors"),
    "another tokenizer": (rename_token, "another tokenizer than model.path.* is token [01] there and [01] here"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer files there|its tokenizer"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_reference_that_cannot_take_the_policys_place_is_refused(name: str, weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    shutil.copytree(weights, folder)
    change, told = MISTAKES[name]
    change(folder)
    with pytest.raises(ConfigError, match=rf"algorithm.kl.reference = '{folder}'") as raised:
        check_reference_model(config_with(folder))
    assert re.search(told, str(raised.value)), raised.value


def test_one_of_the_same_architecture_is_taken(weights: Path, tmp_path: Path) -> None:
    """Also with a longer window, which changes no number; and the policy's own start needs no directory."""
    folder = tmp_path / "reference"
    shutil.copytree(weights, folder)
    changed(max_position_embeddings=65536)(folder)
    check_reference_model(config_with(folder))
    check_reference_model(config_with("start"))
    facts = list(check_reference_folder(Subject(config_with(folder))))
    assert [finding.level for finding in facts] == ["fact"]


def test_the_quick_check_finds_a_directory_that_is_none(tmp_path: Path) -> None:
    def refused(reference: Path) -> str:
        with pytest.raises(ConfigError) as raised:
            list(check_reference_folder(Subject(config_with(reference))))
        return str(raised.value)

    assert "no config.json there, and no such folder" in refused(tmp_path / "nothing")
    assert "has no safetensors. Remedy: copy its weights there" in refused(TINY)
    assert f"Remedy: set algorithm.kl.reference to {TINY.parent}/" in refused(TINY.parent)


def test_k1_in_the_loss_is_warned_of() -> None:
    (warning,) = check_reference_folder(Subject(config_with("start", estimator="k1")))
    assert warning.level == "warning" and "its gradient is 0 in the mean" in warning.text
    assert not list(check_reference_folder(Subject(config_with("start", estimator="k1", place="reward"))))
