"""`hybridflow train` of a mixture of experts whose trainer replays what its engine chose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybridflow.policy.init import write_policy
from tests.stack_cpu.command import ROOT, read_lines, run_train, settings
from tests.stack_cpu.moe_model import write_moe

pytestmark = [pytest.mark.stack_cpu, pytest.mark.full, pytest.mark.timeout(600)]

VERIFIER = """
def parity(response):
    return float(sum(map(ord, response)) % 2)
"""
"""A random policy learns from it: about half of a group is right."""


def train(directory: Path, **changes: Any) -> Path:
    """Run folder of two steps of two passes each, with groups carried from the first to the second."""
    dense, moe = directory / "dense", directory / "moe"
    write_policy(ROOT / "configs/models/tiny", dense, seed=0)
    write_moe(dense, moe)
    (directory / "scoring.py").write_text(VERIFIER)
    (directory / "mine.toml").write_text('[[reward.functions]]\ncall = "scoring:parity"\n')
    values = {
        "train__num_steps": 2,
        "train__num_updates_per_step": 2,
        "train__learning_rate": 1e-3,
        "train__lr_warmup_steps": 0,
        "train__layout__tp": 2,
        "train__layout__sequence_parallel": True,
        "rollout__over_sampling": 2.0,
        "rollout__max_new_tokens": 8,
        "data__max_prompt_tokens": 400,
        "rollout__context_tokens": 1024,
        "eval__num_prompts": 0,
    }
    log = directory / "output.txt"
    arguments = ["--config", str(directory / "mine.toml"), "--set", *settings(moe, directory, **(values | changes))]
    assert run_train(arguments, log, timeout_s=500) == 0, log.read_text()[-3000:]
    return directory / "quickstart"


def test_two_steps_replay_the_experts_of_the_engine(tmp_path: Path) -> None:
    """On the policy that decoded, engine and trainer choose alike; after one update the routers want others."""
    folder = train(tmp_path, algorithm__routing_replay="engine")
    metrics, updates = read_lines(folder / "metrics.jsonl"), read_lines(folder / "updates.jsonl")
    steps = [line for line in metrics if line.get("train/updates")]
    assert len(steps) == 2 and sum(line["groups/resumed"] for line in steps) > 0
    assert steps[0]["policy/logprob_gap"] < 1e-4
    for line in steps:
        gap = line["policy/logprob_gap"]
        assert gap is None or gap < 1e-4, "of the tokens that the present policy decoded, if there are any"
        assert 0 < line["routing/choices_differing"] <= line["routing/tokens_differing"] < 1
    first, second = updates[:2]
    assert first["policy/grad_norm"] < 100
    assert (first["train/epoch"], second["train/epoch"]) == (0, 1)
    assert first["routing/tokens_differing"] < 0.01 < second["routing/tokens_differing"]
