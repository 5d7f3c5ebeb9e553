"""Rules that join two sections of a run's configuration; each message names both keys, their values and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hybridflow.config.length_rules import find_length_conflicts
from hybridflow.config.phase_rules import find_phase_conflicts
from hybridflow.config.rope_rules import find_rope_conflicts
from hybridflow.config.routing_rules import find_routing_conflicts

if TYPE_CHECKING:
    from hybridflow.config.sections import Config

CONFLICT_BREAK = "\x1e"
"""Between the messages of one error."""
SECTIONS_ALONE = "sections alone"
"""Context of a validation that does not look across sections."""


def find_conflicts(config: Config) -> Iterator[str]:
    """Gives "<what is wrong, with the values>. Remedy: <what to do>" of each rule that `config` breaks."""
    yield from find_own_conflicts(config)
    yield from find_routing_conflicts(config)
    yield from find_rope_conflicts(config)
    yield from find_phase_conflicts(config, find_own_conflicts)


def find_own_conflicts(config: Config) -> Iterator[str]:
    """The same, of the rules that hold for the run as for each phase of its curriculum."""
    judge, wait_s = config.reward.judge, config.reward.timeout_s
    if judge.endpoints and judge.deadline_s >= wait_s:
        yield (
            f"reward.judge.deadline_s ({judge.deadline_s:g}) is not below reward.timeout_s ({wait_s:g}): the run "
            "would end before the judge may be late. Remedy: lower the first, or raise the second"
        )
    if config.data.train_path and not config.data.test_path and config.eval.num_prompts:
        yield (
            f"data.train_path is {config.data.train_path!r} and data.test_path is not set: eval.num_prompts "
            f"({config.eval.num_prompts}) generated rows would be evaluated, which say nothing about yours. Remedy: "
            f"set data.test_path, or switch evaluation off with eval.num_prompts = 0"
        )
    mini, prompts = config.train.mini_batch_prompts, config.train.prompts_per_step
    if mini is not None and mini > prompts:
        yield (
            f"train.mini_batch_prompts ({mini}) is above train.prompts_per_step ({prompts}): a step has no such "
            f"mini-batch. Remedy: lower the first, or leave it out for one optimizer step per step"
        )
    if config.rollout.dynamic_sampling and config.rollout.over_sampling > 1 and config.algorithm.mask_stale_tokens:
        yield (
            f"rollout.dynamic_sampling = true with rollout.over_sampling ({config.rollout.over_sampling:g}) above 1 "
            f"and algorithm.mask_stale_tokens = true: a group that was kept from the step before has older tokens "
            f"alone, so nothing of it would be learnt though it counts. Remedy: set algorithm.mask_stale_tokens = "
            f"false, or rollout.over_sampling = 1"
        )
    yield from find_length_conflicts(config)
