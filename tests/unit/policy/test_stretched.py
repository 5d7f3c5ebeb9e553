"""YaRN of a phase: one config.json that both sides read, and what cannot be stretched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridflow.config.sections import Config
from hybridflow.errors import ConfigError
from hybridflow.policy.stretched import stretch_config, write_stretched
from hybridflow.preflight.phase_models import check_phase_models
from hybridflow.rollout.engine.model_folder import write_engine_model
from hybridflow.trainer.layout import read_model
from megatron_ext.hf.rope import YarnScaling

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs/models/tiny"


def test_trainer_and_engines_read_the_same_yarn(tmp_path: Path) -> None:
    folder = write_stretched(TINY, tmp_path / "run/stretched", 4.0)
    found = read_model(folder)
    assert found.rope_scaling == YarnScaling(4.0, 32768, pytest.approx(1.1386294), 32.0, 1.0, True)
    assert (found.native_window_tokens, found.window_tokens, found.rope_theta) == (32768, 131072, 10000.0)
    engine = json.loads((write_engine_model(folder, tmp_path / "run/logs/engine", 99) / "config.json").read_text())
    assert engine["rope_scaling"]["factor"] == 4.0 and engine["max_position_embeddings"] == 131072
    assert {path.name for path in folder.iterdir()} == {path.name for path in TINY.iterdir()}
    assert write_stretched(TINY, folder, 4.0) == folder


def test_older_keys_and_a_model_with_yarn_keep_the_native_window() -> None:
    older = {"max_position_embeddings": 4096, "rope_theta": 1e6}
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096}
    assert stretch_config(older, 8, "m") == older | {"rope_scaling": yarn}
    again = {"max_position_embeddings": 8192, "rope_scaling": yarn | {"factor": 2.0}}
    assert stretch_config(again, 8, "m")["rope_scaling"] == yarn


def test_of_two_keys_one_is_left_and_neither_may_stretch_another_way(tmp_path: Path) -> None:
    """transformers reads the older one where both are there: a factor in the newer one would be none."""
    both = json.loads((TINY / "config.json").read_text())
    both["rope_scaling"] = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192}
    stretched = stretch_config(both, 8, "m")
    assert "rope_scaling" not in stretched and stretched["rope_parameters"]["rope_theta"] == 10000.0
    (tmp_path / "config.json").write_text(json.dumps(stretched))
    found = read_model(tmp_path)
    assert (found.native_window_tokens, found.window_tokens) == (8192, 65536)
    both["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    with pytest.raises(ConfigError, match=r"m: rope_scaling .*'linear'"):
        stretch_config(both, 2, "m")


@pytest.mark.parametrize("kind", ["linear", "llama3", "dynamic"])
def test_a_model_that_is_stretched_another_way_is_refused(kind: str) -> None:
    config = {"max_position_embeddings": 4096, "rope_scaling": {"rope_type": kind, "factor": 2.0}}
    with pytest.raises(ConfigError, match=rf"m: rope_scaling .*'{kind}'.*Remedy: leave yarn_factor out"):
        stretch_config(config, 4, "m")


def phased(**phase: Any) -> Config:
    values = {
        "model": {"path": str(TINY)},
        "eval": {"num_prompts": 0},
        "rollout": {"context_tokens": 40000},
        "curriculum": {"phases": [{"name": "short", "steps": 1, "context_tokens": 20000}, {"name": "long", **phase}]},
    }
    return Config.model_validate(values)


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ({}, r"phases.1 \('long'\): rollout.context_tokens = 40000 is above the model's window of 32768 tokens"),
        (
            {"yarn_factor": 1.2},
            r"40000 is above the model's window of 39321 tokens \(curriculum.phases.1.yarn_factor = 1.2",
        ),
        ({"yarn_factor": 2.0, "context_tokens": 70000}, r"phases.1.context_tokens = 70000 is above .* of 65536"),
        ({"yarn_factor": 2.0, "layout": {"tp": 3}}, r"curriculum.phases.1.layout"),
    ],
)
def test_what_the_model_does_not_have_is_refused_with_the_phase(phase: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_phase_models(phased(**phase))
    check_phase_models(phased(yarn_factor=1.3))


def test_yarn_of_the_engines_alone_is_refused() -> None:
    values = phased(yarn_factor=2.0).model_dump()
    values["rollout"]["sglang"] = {"json_model_override_args": "{}"}
    with pytest.raises(
        ValueError, match=r"curriculum.phases.1.yarn_factor = 2 .*rollout.sglang.json_model_override_args"
    ):
        Config.model_validate(values)
