"""Evaluation of several sets: decoded in one go, kept apart by name, in one file."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from hybridflow.data.dataset import EvalSet
from hybridflow.loop.evaluation import Evaluation
from hybridflow.loop.train_loop import train
from tests.unit.loop.fakes import FakeSystem, build_config


def test_sets_are_decoded_together_and_told_apart(tmp_path: Path) -> None:
    """The first set has 3 prompts and a row without one, the second a prompt: 5 completions, 4 of them decoded."""
    system = FakeSystem(build_config(tmp_path, train__num_steps=1))
    (test,) = system.inputs.eval_sets
    sets = [
        EvalSet("test", test.prompts[:3], {"test-000009": "no gold"}),
        EvalSet("long", [msgspec.structs.replace(test.prompts[3], prompt_id="long-000000")]),
    ]
    system.run.evaluation.sets = sets
    train(system.run)
    assert system.events.count("decode e00000") == system.events.count("decode e00001") == 1
    lines = [json.loads(line) for line in system.folder.eval_completions.read_text().splitlines()]
    assert [(line["group_id"], line["prompt_id"]) for line in lines[:5]] == [
        *((f"e00000-g{slot:04d}", test.prompts[slot].prompt_id) for slot in range(3)),
        ("e00000-test-000009", "test-000009"),
        ("e00000-g0003", "long-000000"),
    ]
    results = system.run.state.evals_latest
    assert {name: (result.accuracy, result.bounds and result.bounds.low) for name, result in results.items()} == {
        "test": (1.0, 0.75),
        "long": (1.0, 1.0),
    }
    step = next(line for line in system.metrics() if "eval/accuracy" in line)
    assert (step["eval/unknown"], step["eval/long/unknown"]) == (1.0, 0.0)


def test_without_sets_evaluation_is_off(tmp_path: Path) -> None:
    system = FakeSystem(build_config(tmp_path, train__num_steps=1, eval__num_prompts=0))
    assert isinstance(system.run.evaluation, Evaluation) and not system.run.evaluation.sets
    train(system.run)
    assert not system.run.state.evals_before and not system.run.state.evals_latest
    assert not any(event.startswith("decode e") for event in system.events)
