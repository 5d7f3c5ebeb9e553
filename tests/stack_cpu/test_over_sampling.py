"""Over-sampling on the real stack: completions that are stopped and gone on with, and a whole run that does so."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.control.carryover import OverSampling, read_carried
from hybridflow.control.collect import Collected, collect_step
from hybridflow.control.publish import publish_weights
from hybridflow.control.system import System
from hybridflow.policy.init import write_policy
from hybridflow.types import Prompt, SamplingParams
from tests.stack_cpu.command import ROOT, read_lines, run_train, settings

pytestmark = [pytest.mark.stack_cpu, pytest.mark.timeout(400)]

NUM_PROMPTS, NUM_COMPLETIONS = 3, 2
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=120)
PROMPTS = [
    Prompt(
        prompt_id=f"p{n}",
        token_ids=[5 + (7 * n + 3 * i) % 200 for i in range(40 + 10 * n)],
        data_source="synth_easy",
        ability="doc-qa",
        ground_truth="yen",
    )
    for n in range(NUM_PROMPTS)
]


def test_a_completion_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    """Greedy, and the second version has the weights of the first: whatever the cut, it is what HF writes in one go.

    The engine runs three requests at a time. So when the first group is complete a member of another is half decoded.
    """
    write_policy(ROOT / "configs/models/tiny", tmp_path / "hf", seed=0)
    changes = {"train__layout__tp": 1, "reward__num_workers": 1, "rollout__max_running_requests": 3}
    overrides = settings(tmp_path / "hf", tmp_path, **changes)
    config = load_config([ROOT / "configs/quickstart.toml"], overrides, Config)
    with System(config, tmp_path / "hf", tmp_path / "logs", note=lambda text: None) as system:

        def collect(prefix: str, rules: OverSampling, carried: list, fresh: list[Prompt], version: int) -> Collected:
            return collect_step(
                rules.plan(prefix, carried, fresh, version, NUM_COMPLETIONS),
                GREEDY,
                rollout=system.rollout,
                stream=system.stream,
                verdict_timeout_s=60,
                check_workers=system.check_workers,
            )

        publish_weights(system.trainer, system.rollout, 0)
        first = collect("t00001", OverSampling(1, NUM_PROMPTS, 1), [], PROMPTS, 0)
        publish_weights(system.trainer, system.rollout, 1)
        second = collect("t00002", OverSampling(2, 2, 1), first.carried, [], 1)
    assert sum(group.num_tokens for group in first.carried) > 0, "nothing was half decoded: the test shows nothing"
    assert second.report.resumed_tokens == sum(len(p.token_ids) for group in first.carried for p in group.partials)
    groups = {group.group_id: group for group in [*first.groups, *second.groups]}
    assert sorted(groups) == [f"t00001-g{n:04d}" for n in range(NUM_PROMPTS)]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    resumed = 0
    for n, prompt in enumerate(PROMPTS):
        prompt_ids = torch.tensor([prompt.token_ids])
        written = model.generate(prompt_ids, do_sample=False, max_new_tokens=GREEDY.max_new_tokens)
        for member in groups[f"t00001-g{n:04d}"].members:
            completion = member.completion
            assert completion.token_ids == written[0, prompt_ids.shape[1] :].tolist()
            assert len(completion.rollout_logprobs) == len(completion.token_ids)
            assert sum(run.num_tokens for run in completion.version_runs) == len(completion.token_ids)
            resumed += [run.version for run in completion.version_runs] == [0, 1]
    assert resumed > 0


def test_a_run_that_over_samples_and_its_resume_train_on_each_prompt_once(tmp_path: Path) -> None:
    write_policy(ROOT / "configs/models/tiny", tmp_path / "hf", seed=0)
    changes = {
        "train__layout__tp": 1,
        "train__prompts_per_step": 4,
        "algorithm__num_completions": 2,
        "rollout__over_sampling": 1.5,
        "rollout__max_new_tokens": 100,
        "rollout__max_running_requests": 5,
        "eval__num_prompts": 0,
        "reward__num_workers": 1,
    }
    log, run = tmp_path / "output.txt", tmp_path / "quickstart"
    arguments = ["--set", *settings(tmp_path / "hf", tmp_path, **changes | {"train__num_steps": 2})]
    assert run_train(arguments, log) == 0, log.read_text()[-3000:]
    carried = read_carried(run / "checkpoints/rl-000002")
    assert len(carried) == 2 and sum(group.num_tokens for group in carried) > 0
    arguments = ["--resume", "--set", *settings(tmp_path / "hf", tmp_path, **changes | {"train__num_steps": 3})]
    assert run_train(arguments, log) == 0, log.read_text()[-3000:]

    lines = read_lines(run / "completions.jsonl")
    assert len(lines) == len({line["completion_id"] for line in lines}) == 3 * 4 * 2
    prompts = {line["group_id"]: line["prompt_id"] for line in lines}
    assert len(set(prompts.values())) == 3 * 4
    assert all(0 <= line["step"] - 1 - line["versions"][0][0] <= 2 for line in lines if "versions" in line)
    summary = json.loads((run / "summary.json").read_text())
    groups = summary["groups"]
    assert (groups["started"], groups["carried"], groups["discarded"]) == (3 * 4 + 2, 2, 0)
    assert "order of arrival decides" in summary["sampling"]
    resumed_step = next(line for line in read_lines(run / "metrics.jsonl") if line["step"] == 3)
    assert resumed_step["groups/resumed"] == 2.0
    assert msgspec.json.decode((run / "checkpoints/rl-000003/state.json").read_bytes())["rl_step"] == 3
