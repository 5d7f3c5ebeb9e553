"""`[algorithm.kl]` and `[algorithm.aepo]`: what does not go together is refused by keys, values and remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.errors import ConfigError

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "configs/quickstart.toml"
KL = {"place": '"loss"', "coefficient": "0.04", "reference": '"start"'}


def load(directory: Path, section: str, **keys: str) -> Config:
    """quickstart.toml with one more table."""
    (directory / "more.toml").write_text(f"[algorithm.{section}]\n" + "".join(f"{k} = {v}\n" for k, v in keys.items()))
    return load_config([QUICKSTART, directory / "more.toml"], [], Config)


REFUSED = {
    "no reference": ("kl", {"place": '"loss"', "coefficient": "0.1"}, "algorithm.kl.reference is not set.*start"),
    "coefficient 0": ("kl", KL | {"coefficient": "0.0"}, 'place = "loss" with algorithm.kl.coefficient = 0'),
    "a coefficient alone": ("kl", {"coefficient": "0.1"}, 'place = "off" with algorithm.kl.coefficient = 0.1'),
    "unbiased reward": (
        "kl",
        KL | {"place": '"reward"', "estimator": '"unbiased"'},
        'set algorithm.kl.estimator = "k1"',
    ),
    "unknown estimator": ("kl", KL | {"estimator": '"k4"'}, "estimator"),
    "below 0": ("kl", KL | {"coefficient": "-0.1"}, "coefficient"),
    "high alone": ("aepo", {"high": "0.5"}, "high = 0.5 is set and algorithm.aepo.low is not.*set both, or neither"),
    "low alone": ("aepo", {"low": "0.5"}, "low = 0.5 is set and algorithm.aepo.high is not"),
    "neither": ("aepo", {}, "without algorithm.aepo.high and algorithm.aepo.low.*set both, or remove the section"),
    "low above high": ("aepo", {"high": "0.2", "low": "0.3"}, "low = 0.3 is not below algorithm.aepo.high = 0.2"),
    "low at high": ("aepo", {"high": "0.3", "low": "0.3"}, "low = 0.3 is not below"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_contradiction_is_refused(name: str, tmp_path: Path) -> None:
    section, keys, told = REFUSED[name]
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, section, **keys)
    assert re.search(told, str(raised.value), re.DOTALL), raised.value
    assert "emedy" in str(raised.value) or "rule" in str(raised.value)


def test_what_goes_together_is_taken(tmp_path: Path) -> None:
    kl = load(tmp_path, "kl", **KL).algorithm.kl
    assert (kl.is_on, kl.reference_folder, kl.estimator) == (True, None, "k3")
    assert load(tmp_path, "kl", **(KL | {"place": '"off"', "coefficient": "0.0"})).algorithm.kl.is_on is False
    aepo = load(tmp_path, "aepo", high="0.5", low="0.3").algorithm.aepo
    assert (aepo.is_on, aepo.high, aepo.low) == (True, 0.5, 0.3)
    default = load_config([QUICKSTART], [], Config).algorithm
    assert not default.kl.is_on and not default.aepo.is_on


def test_a_reference_folder_is_taken_from_beside_the_file_and_start_is_none(tmp_path: Path) -> None:
    """Also where a folder of that name is there."""
    (tmp_path / "start").mkdir()
    (tmp_path / "base").mkdir()
    assert load(tmp_path, "kl", **KL).algorithm.kl.reference == "start"
    folder = load(tmp_path, "kl", **(KL | {"reference": '"base"'})).algorithm.kl.reference_folder
    assert folder == str(tmp_path / "base")


def test_a_resolved_configuration_reads_back(tmp_path: Path) -> None:
    """There every key is set, those of AEPO to null."""
    config = load_config([QUICKSTART], [], Config)
    (tmp_path / "resolved.json").write_text(config.model_dump_json())
    assert load_config([tmp_path / "resolved.json"], [], Config) == config
