"""Phases on the real stack: other workers between two of them, and YaRN that begins with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from hybridflow.policy.init import write_policy
from tests.stack_cpu.command import ROOT, read_lines, run_train, settings

pytestmark = [pytest.mark.stack_cpu, pytest.mark.full, pytest.mark.timeout(600)]

SHORT = {"name": "short", "window": [0, 110], "steps": 1}
LONG = {"name": "long", "window": [110, 200]}
CHANGES: dict[str, Any] = {
    "data__synth__doc_tokens": 128,
    "data__synth__min_doc_tokens": 64,
    "data__max_prompt_tokens": 200,
    "train__num_steps": 3,
    "train__prompts_per_step": 4,
    "train__learning_rate": 1e-4,
    "eval__num_prompts": 0,
    "checkpoint__every_steps": 0,
    "tracking__wandb": "disabled",
}


def run(model: Path, directory: Path, *phases: dict[str, Any], **changes: Any) -> Path:
    """The folder of a run that came to its end."""
    arguments: list[str] = []
    for value in settings(model, directory, **(CHANGES | changes)):
        arguments += ["--set", value]
    arguments += ["--set", f"curriculum.phases={to_toml(phases)}"]
    arguments += ["--set", 'reward.functions=[{call="tests.faults.reward:even"}]']  # an untrained model earns something
    log = directory.with_suffix(".log")
    assert run_train(arguments, log, timeout_s=500) == 0, log.read_text()[-3000:]
    return directory / "quickstart"


def to_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {to_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    return json.dumps(value)


def load_weights(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def test_a_run_that_is_laid_out_anew_between_two_phases_equals_one_that_is_not(tmp_path: Path) -> None:
    """From TP2 to PP2: the same completions, and the same numbers and weights to 1e-5."""
    write_policy(ROOT / "configs/models/tiny", tmp_path / "hf", seed=0)
    plain = run(tmp_path / "hf", tmp_path / "plain", SHORT, LONG)
    anew = run(tmp_path / "hf", tmp_path / "anew", SHORT, LONG | {"layout": {"pp": 2}})
    assert json.loads((anew / "summary.json").read_text())["curriculum"]["phase"] == "long"
    said = [[line["text"] for line in read_lines(path / "completions.jsonl")] for path in (plain, anew)]
    assert said[0] == said[1] and len(said[0]) == 48
    before, after = (read_lines(path / "metrics.jsonl") for path in (plain, anew))
    assert [line["curriculum/phase"] for line in after] == [1, 2, 2]
    assert all(line["groups/trained"] > 0 for line in after)
    for one, other in zip(before, after, strict=True):
        for name in ("reward/mean", "policy/loss", "policy/entropy", "policy/grad_norm", "train/learning_rate"):
            assert other[name] == pytest.approx(one[name], rel=1e-5, abs=1e-5), name
    weights, others = (load_weights(path / "hf") for path in (plain, anew))
    assert weights.keys() == others.keys()
    assert max(float((weights[name] - others[name]).abs().max()) for name in weights) < 1e-5


def test_yarn_of_a_phase_is_that_of_trainer_and_engines(tmp_path: Path) -> None:
    """Native window 128: the second phase reads prompts beyond it, and its gate compares a text as long."""
    write_policy(ROOT / "configs/models/tiny", tmp_path / "hf", seed=0)
    path = tmp_path / "hf/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 128}))
    long = LONG | {"yarn_factor": 2.0, "context_tokens": 256}
    folder = run(tmp_path / "hf", tmp_path / "yarn", SHORT | {"context_tokens": 128}, long, rollout__context_tokens=256)
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["curriculum/phase"] for line in lines] == [1, 2, 2]
    assert all(line["groups/trained"] > 0 for line in lines)
    assert all(line["policy/logprob_gap"] < 1e-4 for line in lines)
    rope = json.loads((folder / "hf/config.json").read_text())["rope_parameters"]
    assert rope["rope_type"] == "yarn" and (rope["factor"], rope["original_max_position_embeddings"]) == (2.0, 128)
