"""Parts of the algorithm by name: which keys each takes, and what does not go together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from hybridflow.algorithms.registry import ADVANTAGES, AGGREGATIONS, TERMS
from hybridflow.algorithms.spec import algorithm_spec
from hybridflow.config.algorithm_parts import AVERAGES_SEQUENCES, OF_SEQUENCES, PARAMETERS
from hybridflow.config.algorithm_section import AlgorithmSection
from hybridflow.config.load import dump_resolved, load_config
from hybridflow.config.sections import Config
from hybridflow.errors import ConfigError

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.toml"


def load(*overrides: str) -> Config:
    return load_config([QUICKSTART], overrides, Config)


def test_the_table_says_what_the_registered_classes_take() -> None:
    for kind, registry in (("loss", TERMS), ("advantage", ADVANTAGES), ("aggregation", AGGREGATIONS)):
        choices = AlgorithmSection.model_fields[kind].annotation
        for name, keys in PARAMETERS[kind].items():
            taken = [field.name for field in dataclasses.fields(registry.find(name))]
            assert (name in str(choices), sorted(taken)) == (True, sorted(keys))
    assert {name for name in PARAMETERS["loss"] if getattr(TERMS.find(name), "of_sequences", False)} == OF_SEQUENCES
    averages = {name for name in AGGREGATIONS.names if getattr(AGGREGATIONS.find(name), "averages_sequences", False)}
    assert averages == AVERAGES_SEQUENCES


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["loss=gspo"], ["algorithm.loss (gspo)", "algorithm.aggregation (token_mean)", '"sequence_mean"']),
        (["loss=gspo", "aggregation=constant"], ["algorithm.aggregation (constant)"]),
        (["loss=sapo", "clip_low=0.1"], ["algorithm.clip_low (0.1)", "clip or dual_clip", "algorithm.loss (sapo)"]),
        (["clip_dual=4"], ["algorithm.clip_dual (4", "loss = dual_clip", "algorithm.loss (clip)"]),
        (["tau_neg=2"], ["algorithm.tau_neg (2", "loss = sapo"]),
        (["advantage=rloo", "normalise_std=false"], ["algorithm.normalise_std (False)", "advantage = group_relative"]),
        (["normaliser_tokens=8"], ["algorithm.normaliser_tokens (8)", "aggregation = constant"]),
        (["loss=cispo", "tau_pos=2", "clip_dual=4"], ["algorithm.tau_pos (2", "algorithm.clip_dual (4", "2 problems"]),
        (["loss=ppo"], ["give one of clip, dual_clip, gspo, cispo, sapo, or \"module:function\""]),
        (["advantage=gae"], ["give one of group_relative, dr_grpo, "]),
        (["loss=dual_clip", "clip_dual=1"], ["above 1"]),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(overrides: list[str], said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(*(f"algorithm.{one}" for one in overrides))
    assert all(part in str(caught.value) for part in [*said, "remedy"]), str(caught.value)


@pytest.mark.parametrize(
    ("loss", "clips"),
    [("clip", (0.2, 0.28)), ("dual_clip", (0.2, 0.28)), ("gspo", (3e-4, 4e-4)), ("cispo", (1.0, 4.0))],
)
def test_a_loss_has_clips_of_its_own_scale_which_may_be_set(loss: str, clips: tuple[float, float]) -> None:
    overrides = [f"algorithm.loss={loss}", "algorithm.aggregation=sequence_mean"]
    section = load(*overrides).algorithm
    assert (section.clip_low, section.clip_high) == clips
    section = load(*overrides, "algorithm.clip_high=0.5").algorithm
    assert (section.clip_low, section.clip_high) == (clips[0], 0.5)


def test_a_resolved_configuration_is_one(tmp_path: Path) -> None:
    config = load("algorithm.loss=sapo", "algorithm.aggregation=constant")
    dump_resolved(config, tmp_path / "resolved.json")
    assert load_config([tmp_path / "resolved.json"], [], Config) == config
    assert json.loads((tmp_path / "resolved.json").read_text())["algorithm"]["clip_low"] == 0.2


def test_names_and_parameters_reach_the_spec() -> None:
    spec = algorithm_spec(
        load("algorithm.loss=dual_clip", "algorithm.advantage=rloo", "algorithm.aggregation=constant")
    )
    assert (spec.advantage, spec.objective.terms, spec.objective.aggregation) == ("rloo", ["dual_clip"], "constant")
    assert spec.objective.parameters["normaliser_tokens"] == 8  # rollout.max_new_tokens of the quickstart
    fixed = algorithm_spec(load("algorithm.aggregation=constant", "algorithm.normaliser_tokens=100"))
    assert fixed.objective.parameters["normaliser_tokens"] == 100
    plain = algorithm_spec(load())
    assert (plain.advantage, plain.objective.terms, plain.objective.aggregation) == (
        "group_relative", ["clip"], "token_mean"
    )  # fmt: skip
