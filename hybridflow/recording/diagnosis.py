"""Diagnosis of a run that taught nothing: causes in counts, and what to try."""

from __future__ import annotations

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
