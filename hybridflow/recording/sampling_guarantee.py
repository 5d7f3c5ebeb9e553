"""Guarantee of sampling in words: what decides the completions of a run, `sampling` in summary.json."""

from __future__ import annotations

from hybridflow.config.rollout_section import RolloutSection

CPU = (
    "each completion follows from (run.seed, completion id, weights): same config and seed, same completions; "
    "to rounding only after a step in which rollout_events were counted or groups waited for room in an engine"
)
DETERMINISTIC_CUDA = (
    "each completion follows from (run.seed, completion id, weights): seeds are sent, and SGLang honours them in the "
    "deterministic mode that rollout.sglang.enable_deterministic_inference switched on"
)
CUDA = (
    "none: seeds are sent, and honoured only in SGLang's deterministic mode "
    "(rollout.sglang.enable_deterministic_inference)"
)
OVER_SAMPLED = (
    "; rollout.over_sampling is above 1, so order of arrival decides which groups a step trains on and where a "
    "completion that is resumed changes policy version: two runs of one seed differ"
)


def sampling_guarantee(rollout: RolloutSection, has_cuda: bool) -> str:
    """Names the guarantee that holds for these settings on this machine."""
    if not has_cuda:
        held = CPU
    elif rollout.sglang.get("enable_deterministic_inference"):
        held = DETERMINISTIC_CUDA
    else:
        held = CUDA
    return held + OVER_SAMPLED if rollout.over_sampling > 1 else held
