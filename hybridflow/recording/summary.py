"""summary.json, the run in one page: its figures, what decided its completions, and why it taught nothing, if so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hybridflow.config.rollout_section import RolloutSection
from hybridflow.recording.accuracy import TEST, EvalResult
from hybridflow.recording.run_folder.summary_file import installed_versions
from hybridflow.recording.state import RunState

FINISHED, NOTHING_LEARNT = "finished", "finished, nothing learnt"
NOTABLE = 0.25
"""Share of completions from which one cause is named with a remedy."""
IDLE_STEPS = 5
"""Steps at the end without a gradient that are worth a word, though earlier ones had some."""
_REASONS = {
    "zero_variance_all_wrong": "all wrong",
    "zero_variance_all_right": "all right",
    "zero_variance": "of one reward, neither right nor wrong",
    "too_few_known": "with too few known verdicts",
}


def name_status(state: RunState) -> str:
    """Status of a run that came to its end: it says whether any step changed the weights."""
    return NOTHING_LEARNT if state.rl_step and not state.policy_version else FINISHED


def diagnose(state: RunState) -> list[str]:
    """Sentences for the user; none where the last steps had something to learn from."""
    if state.groups.trained and not state.policy_version:
        return [
            f"all {state.num_skipped_updates} updates were skipped, as their gradients were not finite",
            'try: a lower train.learning_rate, or model.dtype = "float32"',
        ]
    idle = state.num_idle_steps
    if not state.rl_step or idle < min(IDLE_STEPS, state.rl_step):
        return []
    groups = state.groups
    if not groups.trained:
        head = f"no group of {groups.started} had rewards that differ, so no step had a gradient"
    else:
        head = f"the last {idle} of {state.rl_step} steps had no gradient"
    shares = [
        f"{number / groups.started:.0%} of the groups {_REASONS.get(reason, reason)}"
        for reason, number in sorted(groups.filtered.items(), key=lambda item: -item[1])
    ]
    number = state.num_completions
    counts = {
        "without an answer sentence": state.num_unanswered,
        "cut at rollout.max_new_tokens": state.num_truncated,
        "with an unknown verdict": state.num_unknown,
    }
    told = [f"{count} of {number} completions {what}" for what, count in counts.items() if count]
    return [f"{head}: {'; '.join([*shares, *told])}", *(f"try: {remedy}" for remedy in _remedies(state))]


def _remedies(state: RunState) -> list[str]:
    number, filtered = max(state.num_completions, 1), state.groups.filtered
    total = max(state.groups.started, 1)
    found: list[str] = []
    if state.num_unknown >= NOTABLE * number:
        found.append('mend the verifier or judge that "why" in completions.jsonl names; hybridflow check tries them')
    if state.num_truncated >= NOTABLE * number:
        found.append("raise rollout.max_new_tokens, or ask for shorter answers in the prompt")
    if state.num_unanswered >= NOTABLE * number:
        found.append(
            'ask in the prompt for a sentence such as "Therefore, the answer is ...", warm the model up on '
            "demonstrations (warmup.stages, hybridflow sft), or judge with a function of your own"
        )
    if filtered.get("zero_variance_all_wrong", 0) >= NOTABLE * total:
        found.append(
            "easier rows first, more completions of each prompt (algorithm.num_completions), a verifier with values "
            "between 0 and 1, or a model that gets some right"
        )
    if filtered.get("zero_variance_all_right", 0) >= NOTABLE * total:
        found.append("harder rows: the model knows these")
    if filtered.get("zero_variance", 0) >= NOTABLE * total:
        found.append(
            "a verifier whose value depends on the answer: `hybridflow score` shows its values; or more completions of "
            "each prompt (algorithm.num_completions)"
        )
    return found or ["more completions of each prompt (algorithm.num_completions), or rows of another difficulty"]


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
DYNAMIC = (
    "; with rollout.dynamic_sampling groups are replaced as verdicts arrive, so what is decoded side by side differs "
    "between two runs of one seed, and their completions are equal to rounding"
)


BALANCED = (
    "; with rollout.dynamic_sampling and curriculum.task_balance the order of arrival decides which prompt replaces "
    "which group: two runs of one seed differ where two of a step are left out"
)


def sampling_guarantee(rollout: RolloutSection, has_cuda: bool, *, balances_tasks: bool = False) -> str:
    """Names the guarantee that holds for these settings on this machine."""
    if not has_cuda:
        held = CPU
    elif rollout.sglang.get("enable_deterministic_inference"):
        held = DETERMINISTIC_CUDA
    else:
        held = CUDA
    if rollout.over_sampling > 1:
        return held + OVER_SAMPLED
    if rollout.dynamic_sampling:
        return held + (BALANCED if balances_tasks else DYNAMIC)
    return held


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
    curriculum: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that is said of a run at its end. A number that was never measured is null.

    `judge` holds the totals of the model judge and the last state of its endpoints; None where none was asked.
    `num_carried` is None where each step trains on all groups that it starts, and `curriculum` where the run has no
    phases.
    """
    groups = state.groups
    carrying = {"discarded": groups.discarded, "carried": num_carried, "short_steps": groups.short_steps}
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
        "curriculum": curriculum,
        "groups": {
            "started": groups.started,
            "trained": groups.trained,
            "filtered": groups.filtered,
            **({} if num_carried is None else carrying),
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
