"""Numbers of a step and, summed up, of its optimizer steps: for totals, files and display.

Each optimizer step alone is a line of updates.jsonl.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from hybridflow.algorithms.advantages import group_rewards
from hybridflow.config.rollout_section import RolloutSection
from hybridflow.recording.accuracy import compute_accuracy, compute_bounds
from hybridflow.recording.state import RunState
from hybridflow.types import Collected, FilteredBatch, Group, Scored, UpdateMetric, UpdateReport


def build_update_metrics(updates: Sequence[UpdateReport]) -> dict[str, float]:
    """Metrics by full name: means over all tokens of the step (of gradient norms: over optimizer steps), and maxima.

    What is no number in some optimizer steps is of the others alone.
    """
    norms = [update.grad_norm for update in updates]
    metrics = {
        "policy/loss": _mean((update.loss, update.num_tokens) for update in updates),
        "policy/grad_norm": _mean((norm, 1) for norm in norms),
        "policy/grad_norm_max": _largest(norms),
        "train/updates": float(len(updates)),
        "train/skipped": float(sum(update.num_skipped for update in updates)),
        "train/response_tokens": float(sum(update.num_response_tokens for update in updates if not update.epoch)),
    }
    for name in dict.fromkeys(name for update in updates for name in update.metrics):
        measured = measured_of(updates, name)
        values = [metric.value for metric in measured]
        if measured[0].kind == "max":
            metrics[name] = _largest(values)
            continue
        metrics[name] = _mean((metric.value, metric.num_tokens) for metric in measured)
        if measured[0].with_max:
            metrics[f"{name}_max"] = _largest(values)
    return metrics


def build_update_line(update: UpdateReport) -> dict[str, float]:
    """One optimizer step alone, by the same names."""
    return {
        "train/epoch": float(update.epoch),
        "train/mini_batch": float(update.mini_batch),
        "train/response_tokens": float(update.num_response_tokens),
        "train/skipped": float(update.num_skipped),
        "policy/loss": update.loss,
        "policy/grad_norm": update.grad_norm,
        **{name: metric.value for name, metric in update.metrics.items() if metric.of_each_update},
    }


def measured_of(updates: Sequence[UpdateReport], name: str) -> list[UpdateMetric]:
    """One metric, of each optimizer step that has it."""
    return [update.metrics[name] for update in updates if name in update.metrics]


def _mean(pairs: Iterable[tuple[float, float]]) -> float:
    """Weighted mean of the finite values of (value, weight); not-a-number where there is none."""
    finite = [(value, weight) for value, weight in pairs if math.isfinite(value)]
    total = math.fsum(weight for _, weight in finite)
    return math.fsum(value * weight for value, weight in finite) / total if total else math.nan


def _largest(values: Iterable[float]) -> float:
    """Over the finite ones; not-a-number where there is none."""
    return max((value for value in values if math.isfinite(value)), default=math.nan)


def add_to_state(
    state: RunState, collected: Collected, filtered: FilteredBatch, updates: Sequence[UpdateReport]
) -> None:
    """Adds one step to the running totals."""
    state.groups.started += collected.counts.num_started
    state.groups.discarded += collected.counts.num_discarded
    state.groups.short_steps += collected.counts.num_short > 0
    state.groups.trained += filtered.num_groups
    for reason, group_ids in filtered.dropped.items():
        state.groups.filtered[reason] = state.groups.filtered.get(reason, 0) + len(group_ids)
    state.num_unknown += compute_bounds(collected.groups).num_unknown
    mean = compute_accuracy(collected.groups)
    state.reward_means.append(mean if math.isfinite(mean) else None)
    state.prompt_tokens += collected.report.prompt_tokens
    state.cached_tokens += collected.report.cached_tokens
    for name, number in collected.report.events.items():
        state.rollout_events[name] = state.rollout_events.get(name, 0) + number
    members = [member for group in collected.groups for member in group.members]
    state.num_truncated += sum(member.head.finish_reason == "length" for member in members)
    state.num_completions += len(members)
    state.num_unanswered += sum(isinstance(m.verdict, Scored) and not m.verdict.extracted for m in members)
    state.num_idle_steps = 0 if filtered.num_groups else state.num_idle_steps + 1
    for penalties in filtered.overlong.values():
        state.overlong_sum += math.fsum(penalties)
        state.num_shaped += len(penalties)
    state.num_skipped_updates += sum(update.num_skipped for update in updates)
    for gap in measured_of(updates, "policy/logprob_gap"):
        if math.isfinite(gap.value):
            state.gap_sum += gap.value * gap.num_tokens
            state.gap_tokens += gap.num_tokens


def build_metrics(
    policy_version: int,
    collected: Collected,
    filtered: FilteredBatch,
    updates: Sequence[UpdateReport],
    seconds: dict[str, float],
    learning_rate: float,
    *,
    rollout: RolloutSection,
) -> dict[str, float]:
    """Metrics of one step by `group/name`; policy metrics are absent where nothing was trained on."""
    members = [member for group in collected.groups for member in group.members]
    report, bounds = collected.report, compute_bounds(collected.groups)
    metrics = {
        "reward/mean": compute_accuracy(collected.groups),
        "reward/mean_low": bounds.low,
        "reward/mean_high": bounds.high,
        "reward/unknown": float(bounds.num_unknown),
        "rollout/response_tokens_mean": sum(m.num_tokens for m in members) / max(len(members), 1),
        "rollout/truncated_fraction": _fraction(members, "length"),
        "rollout/prompt_tokens": float(report.prompt_tokens),
        "rollout/cached_tokens": float(report.cached_tokens),
        "rollout/prefill_tokens": float(report.prefill_tokens),
        "rollout/retractions": float(report.num_retractions),
        "rollout/cached_fraction": report.cached_tokens / max(report.prompt_tokens, 1),
        "groups/started": float(collected.counts.num_started),
        "groups/trained": float(filtered.num_groups),
        "policy/version": float(policy_version),
        "train/learning_rate": learning_rate,
    }
    metrics |= build_part_metrics(collected.groups)
    if penalties := [penalty for group in filtered.overlong.values() for penalty in group]:
        metrics["reward/overlong_mean"] = math.fsum(penalties) / len(penalties)
        metrics["reward/overlong_fraction"] = sum(penalty < 0 for penalty in penalties) / len(penalties)
    metrics |= {f"groups/filtered/{reason}": float(len(ids)) for reason, ids in filtered.dropped.items()}
    metrics |= filtered.measured.metrics
    if "aepo/masking" in metrics:
        metrics["aepo/masked_fraction"] = filtered.masked_fraction
    metrics |= build_spread("reward", [r for group in collected.groups for r in group_rewards(group)])
    if rollout.carries_groups:
        metrics |= build_carry_metrics(collected, filtered)
    metrics |= {f"rollout/events/{name}": float(number) for name, number in report.events.items()}
    metrics |= {f"time/{name}_s": value for name, value in seconds.items()}
    if seconds.get("rollout"):
        metrics["perf/rollout_tokens_per_s"] = report.response_tokens / seconds["rollout"]
    if updates and filtered.batch is not None:
        metrics |= build_update_metrics(updates)
        metrics |= build_spread("advantage", [sequence.advantage for sequence in filtered.batch.sequences])
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


def build_spread(name: str, values: Sequence[float | None]) -> dict[str, float]:
    """Standard deviation (of all, not a sample), smallest and largest of what is known; nothing where nothing is."""
    known = [value for value in values if value is not None]
    if not known:
        return {}
    return {f"{name}/std": statistics.pstdev(known), f"{name}/min": min(known), f"{name}/max": max(known)}


def build_carry_metrics(collected: Collected, filtered: FilteredBatch) -> dict[str, float]:
    """Metrics of a step that began more groups than it trains on."""
    counts, carried = collected.counts, collected.carried
    members = [member for group in collected.groups for member in group.members]
    version = filtered.policy_version or 0
    ages = [
        (version - run.version, run.num_tokens) for m in members for run in m.completion.version_runs if run.num_tokens
    ]
    num_tokens = sum(number for _, number in ages)
    return {
        "groups/stopped": float(sum(not group.is_complete for group in carried)),
        "groups/surplus": float(sum(group.is_complete for group in carried)),
        "groups/resumed": float(counts.num_resumed),
        "groups/discarded": float(counts.num_discarded),
        "groups/short": float(counts.num_short),
        "rollout/staleness_mean": _ratio(sum(age * number for age, number in ages), num_tokens),
        "rollout/staleness_max": float(max((age for age, _ in ages), default=0)),
        "rollout/kept_tokens": float(sum(group.num_tokens for group in carried)),
        "rollout/resumed_tokens": float(collected.report.resumed_tokens),
        "rollout/discarded_tokens": float(counts.discarded_tokens),
        "rollout/discarded_length_mean": _ratio(counts.discarded_tokens, counts.num_discarded_completions),
        "rollout/complete_length_mean": _ratio(sum(m.num_tokens for m in members), len(members)),
        "train/stale_fraction": _ratio(filtered.num_stale_tokens, filtered.num_tokens),
    }


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _fraction(members: list, reason: str) -> float:
    if not members:
        return math.nan
    return sum(member.head.finish_reason == reason for member in members) / len(members)
