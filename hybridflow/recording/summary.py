"""summary.json: the run in one page, with the guarantee of sampling (what decides its completions) in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hybridflow.config.rollout_section import RolloutSection
from hybridflow.recording.accuracy import TEST, EvalResult
from hybridflow.recording.diagnosis import diagnose
from hybridflow.recording.run_folder.summary import installed_versions
from hybridflow.recording.state import RunState

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


PHASES = ("rollout", "train", "sync")


def build_summary(
    state: RunState,
    *,
    status: str,
    wall_s: float,
    seed: int,
    sampling_guarantee: str,
    weight_transport: dict[str, str],
    data: dict[str, int] | None = None,
    judge: dict[str, Any] | None = None,
    num_carried: int | None = None,
) -> dict[str, Any]:
    """Everything that is said of a run at its end. A number that was never measured is null.

    `judge` holds the totals of the model judge and the last state of its endpoints; None where none was asked.
    `num_carried` is None where each step trains on all groups that it starts.
    """
    over_sampled = {} if num_carried is None else {"discarded": state.groups.discarded, "carried": num_carried}
    seconds = dict.fromkeys(PHASES, 0.0) | state.phase_seconds
    return {
        "status": status,
        "seed": seed,
        "num_steps": state.rl_step,
        "policy_version_final": state.policy_version,
        "eval_accuracy_before": _accuracy(state.evals_before),
        "eval_accuracy_after": _accuracy(state.evals_latest),
        "eval_bounds_before": _bounds(state.evals_before),
        "eval_bounds_after": _bounds(state.evals_latest),
        "num_unknown": state.num_unknown,
        "reward_mean_first5": _mean(state.reward_means[:5]),
        "reward_mean_last5": _mean(state.reward_means[-5:]),
        "data": data or {},
        "groups": {
            "started": state.groups.started,
            "trained": state.groups.trained,
            "filtered": state.groups.filtered,
            **over_sampled,
        },
        "logprob_gap_mean_abs": _finite(state.logprob_gap_mean_abs),
        "diagnosis": diagnose(state),
        "num_skipped_updates": state.num_skipped_updates,
        "num_truncated_completions": state.num_truncated,
        "overlong_mean": state.overlong_sum / state.num_shaped if state.num_shaped else None,
        "judge": judge,
        "prompt_tokens": state.prompt_tokens,
        "cached_tokens": state.cached_tokens,
        "rollout_events": state.rollout_events,
        "phase_seconds": {name: round(value, 3) for name, value in seconds.items()},
        "wall_s": round(wall_s, 3),
        "peak_rss_gib": round(state.peak_rss_gib, 3),
        "sampling": sampling_guarantee,
        "weight_transport": weight_transport,
        "versions": installed_versions(),
    }


def _accuracy(results: Mapping[str, EvalResult]) -> float | None:
    """Accuracy on the test set."""
    return _finite(results[TEST].accuracy) if TEST in results else None


def _bounds(results: Mapping[str, EvalResult]) -> dict[str, float] | None:
    """Accuracy on it with the unknown verdicts as 0 and as 1, and how many they are."""
    bounds = results[TEST].bounds if TEST in results else None
    return None if bounds is None else {"low": bounds.low, "high": bounds.high, "unknown": bounds.num_unknown}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
