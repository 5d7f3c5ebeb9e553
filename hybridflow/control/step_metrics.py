"""Numbers of a step: for the totals of the run, the files and the display."""

from __future__ import annotations

import math

from hybridflow.control.batch import FilteredBatch
from hybridflow.control.collect import Collected
from hybridflow.control.evaluate import compute_accuracy
from hybridflow.control.state import RunState
from hybridflow.types import Group, Scored, Unknown, UpdateReport


def add_to_state(state: RunState, collected: Collected, filtered: FilteredBatch, update: UpdateReport | None) -> None:
    """Adds one step to the running totals."""
    state.groups.started += collected.counts.num_started
    state.groups.discarded += collected.counts.num_discarded
    state.groups.trained += filtered.num_groups
    for reason, group_ids in filtered.dropped.items():
        state.groups.filtered[reason] = state.groups.filtered.get(reason, 0) + len(group_ids)
    mean = compute_accuracy(collected.groups)
    state.reward_means.append(mean if math.isfinite(mean) else None)
    state.prompt_tokens += collected.report.prompt_tokens
    state.cached_tokens += collected.report.cached_tokens
    for name, number in collected.report.events.items():
        state.rollout_events[name] = state.rollout_events.get(name, 0) + number
    state.num_truncated += sum(
        member.head.finish_reason == "length" for group in collected.groups for member in group.members
    )
    for penalties in filtered.overlong.values():
        state.overlong_sum += math.fsum(penalties)
        state.num_shaped += len(penalties)
    if update is not None:
        state.num_skipped_updates += update.num_skipped
        if math.isfinite(update.logprob_gap):
            state.gap_sum += update.logprob_gap * update.num_fresh_tokens
            state.gap_tokens += update.num_fresh_tokens


def build_metrics(
    state: RunState,
    collected: Collected,
    filtered: FilteredBatch,
    update: UpdateReport | None,
    seconds: dict[str, float],
    learning_rate: float,
    *,
    is_over_sampled: bool = False,
) -> dict[str, float]:
    """Metrics of one step by `room/name`; policy metrics are absent where nothing was trained on."""
    members = [member for group in collected.groups for member in group.members]
    report = collected.report
    metrics = {
        "reward/mean": compute_accuracy(collected.groups),
        "reward/unknown": float(sum(isinstance(member.verdict, Unknown) for member in members)),
        "rollout/response_tokens_mean": sum(m.num_tokens for m in members) / max(len(members), 1),
        "rollout/truncated_fraction": _fraction(members, "length"),
        "rollout/prompt_tokens": float(report.prompt_tokens),
        "rollout/cached_tokens": float(report.cached_tokens),
        "rollout/prefill_tokens": float(report.prefill_tokens),
        "rollout/retractions": float(report.num_retractions),
        "rollout/cached_fraction": report.cached_tokens / max(report.prompt_tokens, 1),
        "groups/started": float(collected.counts.num_started),
        "groups/trained": float(filtered.num_groups),
        "policy/version": float(state.policy_version),
        "train/learning_rate": learning_rate,
    }
    metrics |= build_part_metrics(collected.groups)
    if penalties := [penalty for group in filtered.overlong.values() for penalty in group]:
        metrics["reward/overlong_mean"] = math.fsum(penalties) / len(penalties)
        metrics["reward/overlong_fraction"] = sum(penalty < 0 for penalty in penalties) / len(penalties)
    metrics |= {f"groups/filtered/{reason}": float(len(ids)) for reason, ids in filtered.dropped.items()}
    if is_over_sampled:
        metrics |= build_carry_metrics(collected, state.policy_version - 1)
    metrics |= {f"rollout/events/{name}": float(number) for name, number in report.events.items()}
    metrics |= {f"time/{name}_s": value for name, value in seconds.items()}
    if seconds.get("rollout"):
        metrics["perf/rollout_tokens_per_s"] = report.response_tokens / seconds["rollout"]
    if update is not None and filtered.batch is not None:
        metrics |= {
            "policy/loss": update.loss,
            "policy/grad_norm": update.grad_norm,
            "policy/entropy": update.entropy,
            "policy/clip_fraction_low": update.clip_fraction_low,
            "policy/clip_fraction_high": update.clip_fraction_high,
            "policy/logprob_gap": update.logprob_gap,
            "policy/logprob_gap_max": update.logprob_gap_max,
            "policy/logprob_kl": update.logprob_kl,
            "train/skipped": float(update.num_skipped),
            "train/response_tokens": float(update.num_tokens),
        }
        packed = sum(sequence.num_tokens for sequence in filtered.batch.sequences)
        if seconds.get("train"):
            metrics["perf/train_tokens_per_s"] = packed / seconds["train"]
    return metrics


def build_part_metrics(groups: list[Group]) -> dict[str, float]:
    """`reward/parts/<name>`: mean of each named value, over the verdicts that have it."""
    values: dict[str, list[float]] = {}
    for group in groups:
        for member in group.members:
            if isinstance(member.verdict, Scored):
                for name, value in member.verdict.parts.items():
                    values.setdefault(name, []).append(value)
    return {f"reward/parts/{name}": math.fsum(found) / len(found) for name, found in sorted(values.items())}


def build_carry_metrics(collected: Collected, policy_version: int) -> dict[str, float]:
    """Metrics of a step that began more groups than it trains on; `policy_version` is what it decoded with."""
    counts, carried = collected.counts, collected.carried
    runs = [run for group in collected.groups for m in group.members for run in m.completion.version_runs]
    ages = [(policy_version - run.version, run.num_tokens) for run in runs if run.num_tokens]
    num_tokens = sum(number for _, number in ages)
    return {
        "groups/stopped": float(sum(not group.is_complete for group in carried)),
        "groups/surplus": float(sum(group.is_complete for group in carried)),
        "groups/resumed": float(counts.num_resumed),
        "groups/discarded": float(counts.num_discarded),
        "rollout/staleness_mean": sum(age * number for age, number in ages) / num_tokens if num_tokens else math.nan,
        "rollout/staleness_max": float(max((age for age, _ in ages), default=0)),
        "rollout/kept_tokens": float(sum(group.num_tokens for group in carried)),
        "rollout/resumed_tokens": float(collected.report.resumed_tokens),
        "rollout/discarded_tokens": float(counts.discarded_tokens),
    }


def _fraction(members: list, reason: str) -> float:
    if not members:
        return math.nan
    return sum(member.head.finish_reason == reason for member in members) / len(members)
