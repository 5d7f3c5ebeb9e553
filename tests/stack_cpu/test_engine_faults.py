"""Engines that are killed or stopped in the middle of a step: the step completes, every completion exactly once.

One system of two engines and one train worker goes through both faults, one after the other: engine-0 is killed, and
while it starts again engine-1 is stopped. So the second step can only end on the engine that came back, with weights
that the trainer handed out once more.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import ray

from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.loop.collect import collect_step
from hybridflow.loop.step import build_requests, plan_all
from hybridflow.observability.reporter import Notes
from hybridflow.policy.init import write_policy
from hybridflow.rollout.driver.engine_group import EngineGroup
from hybridflow.runtime.colocation import Colocation
from hybridflow.runtime.system import System
from hybridflow.types import Collected, RolloutReport, SamplingParams
from tests.stack_cpu.command import ROOT, build_prompts, settings

pytestmark = [pytest.mark.full, pytest.mark.stack_cpu, pytest.mark.faults, pytest.mark.timeout(400)]

NUM_PROMPTS, NUM_COMPLETIONS = 6, 3
SAMPLED = SamplingParams(temperature=1.0, max_new_tokens=200)


@dataclass
class Stack:
    """A running system, and what it told the user."""

    system: System
    notes: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("faults")
    write_policy(ROOT / "configs/models/tiny", folder / "hf", seed=0)
    overrides = settings(
        folder / "hf",
        folder,
        train__layout__tp=1,
        rollout__num_engines=2,
        rollout__hang_timeout_s=10,
        reward__num_workers=1,
    )
    config = load_config([ROOT / "configs/quickstart.toml"], overrides, Config)
    notes: list[str] = []
    with System(config, folder / "hf", folder / "logs", Notes(notes.append)) as system:
        Colocation(system.trainer, system.rollout, releases=False, offloads=False).sync_weights(0)
        yield Stack(system, notes)


class Saboteur:
    """The engines; `act` is called once, when the victim has delivered some of what it owes and not all."""

    def __init__(self, rollout: EngineGroup, victim: str, act: Callable[[int], None]) -> None:
        self._rollout = rollout
        self._victim = victim
        self._act: Callable[[int], None] | None = act
        self._most = 0
        self.load_weights = rollout.load_weights
        self.stop = rollout.stop
        self.take_dropped = rollout.take_dropped

    def start(self, requests: list, sampling: SamplingParams) -> None:
        self._rollout.start(requests, sampling)

    def poll(self) -> RolloutReport | None:
        owed = self._rollout.in_flight()[self._victim]
        self._most = max(self._most, owed)
        if self._act is not None and 0 < owed < self._most:
            self._act(ray.get(self._rollout.actors[list(self._rollout.in_flight()).index(self._victim)].ping.remote()))
            self._act = None
        return self._rollout.poll()


def step(stack: Stack, name: str, victim: str, number: signal.Signals) -> Collected:
    prompts = build_prompts(NUM_PROMPTS)
    return collect_step(
        plan_all(build_requests(name, prompts, NUM_COMPLETIONS)),
        SAMPLED,
        rollout=Saboteur(stack.system.rollout, victim, lambda pid: os.kill(pid, number)),
        stream=stack.system.stream,
        verdict_timeout_s=60,
        check_workers=stack.system.check_workers,
    )


def check_exactly_once(collected: Collected, name: str) -> None:
    ids = [member.completion.completion_id for group in collected.groups for member in group.members]
    assert ids == [f"{name}-g{g:04d}-c{c:02d}" for g in range(NUM_PROMPTS) for c in range(NUM_COMPLETIONS)]
    assert collected.report.num_completions == len(ids)
    assert collected.report.events["restarted_engine"] >= 1
    assert collected.report.events["lost_lease"] >= 1
    assert {member.completion.policy_version for group in collected.groups for member in group.members} == {0}


def test_a_killed_engine_does_not_cost_a_completion(stack: Stack) -> None:
    check_exactly_once(step(stack, "t00001", "engine-0", signal.SIGKILL), "t00001")
    assert any(note.startswith("engine-0 (process ") and "is gone" in note for note in stack.notes), stack.notes


def test_a_stopped_engine_is_replaced_and_the_other_takes_over_with_current_weights(stack: Stack) -> None:
    check_exactly_once(step(stack, "t00002", "engine-1", signal.SIGSTOP), "t00002")
    assert any(note.startswith("engine-1 (process ") and "hangs" in note for note in stack.notes), stack.notes
    assert "engine-0 has weights version 0 and takes part again" in stack.notes
