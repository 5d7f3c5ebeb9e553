"""`[algorithm.rollout_correction]`: which parts it asks for, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridflow.algorithms.registry import CORRECTIONS
from hybridflow.algorithms.spec import policy_spec
from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.errors import ConfigError

QUICKSTART = Path(__file__).parents[3] / "configs/quickstart.toml"


def load(overrides: list[str]) -> Config:
    return load_config([QUICKSTART], [f"algorithm.rollout_correction.{one}" for one in overrides], Config)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ([], []),
        (["token_weight=tis"], ["tis"]),
        (["token_weight=tis", "tis_cap=2.0"], ["tis"]),
        (["token_weight=icepop", "icepop_high=2.0"], ["icepop"]),
        (["geometric_high=1.001"], ["geometric"]),
        (["outlier_low=1e-4", "off_policy_delta=1e-4", "token_weight=tis"], ["tis", "outlier", "off_policy"]),
    ],
)
def test_parts_by_what_is_set(overrides: list[str], parts: list[str]) -> None:
    """And each can be built from what travels to the train workers."""
    spec = policy_spec(load(overrides).algorithm)
    assert spec.corrections == parts
    assert len(CORRECTIONS.build_all(spec.corrections, spec.parameters)) == len(parts)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["token_weight=icepop", "tis_cap=3.0"], ["tis_cap (3)", '"icepop"', "one weight", 'token_weight = "tis"']),
        (
            ["token_weight=tis", "icepop_low=0.1"],
            ["icepop_low (0.1)", '"tis"', "one weight", 'token_weight = "icepop"'],
        ),
        (["tis_cap=3.0"], ["tis_cap (3)", '"off"', "leave tis_cap out"]),
        (["tis_cap=2.0"], ["tis_cap = 2.0 [--set", 'token_weight = "off" [default] does not take it', "remedy: leave"]),
        (
            ["token_weight=tis", "icepop_high=5.0"],
            ["icepop_high = 5.0 [--set", 'set algorithm.rollout_correction.token_weight = "icepop"'],
        ),
        (["off_policy_against=engine"], ['off_policy_against = "engine" [--set', "off_policy_delta, which is not set"]),
        (["token_weight=tis", "tis_cap=0.5"], ["rollout_correction.tis_cap", "0.5", "1"]),
        (
            ["token_weight=icepop", "icepop_low=5.0", "icepop_high=0.5"],
            ["icepop_low (5)", "icepop_high (0.5)", "below 1"],
        ),
        (["token_weight=icepop", "icepop_low=1.0"], ["icepop_low (1) is not below 1", "remedy: set it below 1"]),
        (["geometric_low=1.01"], ["geometric_low (1.01)", "not below 1"]),
        (["geometric_high=0.9"], ["geometric_high (0.9)", "not above 1"]),
        (["outlier_low=2.0"], ["outlier_low (2)", "not below 1"]),
        (["off_policy_against=trainer"], ["off_policy_against", "off_policy_delta, which is not set"]),
        (["off_policy_delta=0.0"], ["off_policy_delta", "0"]),
        (["token_weight=mis"], ["rollout_correction.token_weight", "tis", "icepop"]),
    ],
    ids=lambda value: " ".join(value) if value and "=" in value[0] else "",
)
def test_what_does_nothing_or_contradicts_is_refused(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        load(overrides)
    message = " ".join(str(refused.value).split())
    for word in ["algorithm.rollout_correction", *words]:
        assert word.lower() in message.lower(), message


def test_a_table_in_one_piece_sets_the_keys_that_it_names_alone() -> None:
    """And so of the section above it."""
    whole = 'algorithm={num_completions=4, rollout_correction={token_weight="icepop"}}'
    section = load_config([], ['model.path="m"', whole], Config).algorithm
    assert (section.num_completions, section.rollout_correction.parts) == (4, ["icepop"])
