"""Over-sampling on the real stack: completions that are stopped and continued. A whole run does so in test_run.py.

The engine is on a device of its own, so weights reach it by broadcast.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from transformers import AutoModelForCausalLM

from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.curriculum.step_rule import Progress
from hybridflow.loop.collect import Refill, collect_step
from hybridflow.loop.step import PartialRollouts, build_requests
from hybridflow.observability.reporter import Notes
from hybridflow.policy.init import write_policy
from hybridflow.runtime.colocation import Colocation
from hybridflow.runtime.system import System
from hybridflow.types import Collected, Group, Prompt, SamplingParams
from tests.stack_cpu.command import ROOT, build_prompts, settings

pytestmark = [pytest.mark.full, pytest.mark.stack_cpu, pytest.mark.timeout(400)]

NUM_PROMPTS, NUM_COMPLETIONS = 3, 2
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=480)
"""So long that decoding three of them takes seconds: the first verdicts are back long before."""
PROMPTS = build_prompts(NUM_PROMPTS)


class OneIsRejected:
    """Counts every group but the one that is complete first."""

    def __init__(self) -> None:
        self._first = ""

    def counts(self, group: Group) -> bool:
        self._first = self._first or group.group_id
        return group.group_id != self._first

    def num_more(self, progress: Progress) -> int:
        return progress.num_short


def test_a_completion_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    """Greedy, and the second version has the weights of the first: whatever the cut, it is what HF writes in one go.

    The engine runs three requests at a time. So when the first group is complete a member of another is half decoded.
    In a third step the group that is complete first does not count, and another is begun beside the one under way.
    """
    write_policy(ROOT / "configs/models/tiny", tmp_path / "hf", seed=0)
    changes = {"train__layout__tp": 1, "reward__num_workers": 1, "rollout__max_running_requests": 3}
    changes |= {"rollout__own_devices": True, "rollout__verify_weights": "all"}
    overrides = settings(tmp_path / "hf", tmp_path, **changes)
    config = load_config([ROOT / "configs/quickstart.toml"], overrides, Config)
    with System(config, tmp_path / "hf", tmp_path / "logs", Notes()) as system:
        assert system.transport.name == "broadcast"

        def collect(
            prefix: str,
            rules: PartialRollouts,
            carried: list,
            fresh: list[Prompt],
            version: int,
            refill: Refill | None = None,
        ) -> Collected:
            return collect_step(
                rules.plan(prefix, carried, fresh, version, NUM_COMPLETIONS),
                GREEDY,
                refill=refill,
                rollout=system.rollout,
                stream=system.stream,
                verdict_timeout_s=60,
                check_workers=system.check_workers,
            )

        over = Colocation(system.trainer, system.rollout, releases=False, offloads=False)
        over.sync_weights(0)
        first = collect("t00001", PartialRollouts(1, NUM_PROMPTS, 1), [], PROMPTS, 0)
        over.sync_weights(1)
        second = collect("t00002", PartialRollouts(2, 2, 1), first.carried, [], 1)
        with patch.object(system.rollout, "extend", wraps=system.rollout.extend) as extend:
            begin = partial(build_requests, "t00003", PROMPTS[2:], NUM_COMPLETIONS, first=2)
            refill = Refill(OneIsRejected(), lambda num_groups, rejected: begin())
            third = collect("t00003", PartialRollouts(2, 2, 1), [], PROMPTS[:2], 1, refill)
    assert sum(group.num_tokens for group in first.carried) > 0, "nothing was half decoded: the test shows nothing"
    assert second.report.resumed_tokens == sum(len(p.tokens) for group in first.carried for p in group.partials)
    groups = {group.group_id: group for group in [*first.groups, *second.groups]}
    assert sorted(groups) == [f"t00001-g{n:04d}" for n in range(NUM_PROMPTS)]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    assert extend.call_count == 1, "the third group waited until all was decoded"
    assert third.report.num_completions == NUM_PROMPTS * NUM_COMPLETIONS and not third.carried
    resumed = 0
    for n, prompt in enumerate(PROMPTS):
        prompt_ids = torch.tensor([prompt.token_ids])
        written = model.generate(prompt_ids, do_sample=False, max_new_tokens=GREEDY.max_new_tokens)
        for member in [*groups[f"t00001-g{n:04d}"].members, *third.groups[n].members]:
            completion = member.completion
            assert completion.token_ids == written[0, prompt_ids.shape[1] :].tolist()
            assert len(completion.tokens.rollout_logprobs) == len(completion.token_ids)
            assert sum(run.num_tokens for run in completion.version_runs) == len(completion.token_ids)
            resumed += [run.version for run in completion.version_runs] == [0, 1]
    assert resumed > 0
