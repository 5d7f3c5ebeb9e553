"""Numbers of a step's optimizer steps, summed up. Each of them alone is a line of updates.jsonl."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from hybridflow.types import UpdateMetric, UpdateReport


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
        "train/response_tokens": float(sum(update.num_tokens for update in updates if update.epoch == 0)),
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
        "train/response_tokens": float(update.num_tokens),
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
