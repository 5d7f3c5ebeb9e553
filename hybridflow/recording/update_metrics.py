"""Numbers of a step's optimizer steps, summed up. Each of them alone is a line of updates.jsonl."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from hybridflow.types import Mismatch, UpdateReport


def build_update_metrics(updates: Sequence[UpdateReport], *, within_top_p: bool = False) -> dict[str, float]:
    """Metrics by `group/name`: means over all tokens of the step (of gradient norms: over optimizer steps), and maxima.

    With `within_top_p` the entropy is that of the renormalised probabilities of the tokens that top-p leaves in, which
    is smaller than that of the policy, and has another name.
    """

    def mean(value: Callable[[UpdateReport], float]) -> float:
        return _mean([(value(update), update.num_tokens) for update in updates])

    def largest(value: Callable[[UpdateReport], float]) -> float:
        return max((v for update in updates if math.isfinite(v := value(update))), default=math.nan)

    metrics = {
        "policy/loss": mean(lambda update: update.loss),
        "policy/grad_norm": _mean([(update.grad_norm, 1) for update in updates]),
        "policy/grad_norm_max": largest(lambda update: update.grad_norm),
        "policy/entropy_within_top_p" if within_top_p else "policy/entropy": mean(lambda update: update.entropy),
        "policy/clip_fraction_low": mean(lambda update: update.clip_fraction_low),
        "policy/clip_fraction_high": mean(lambda update: update.clip_fraction_high),
        "policy/kl": mean(lambda update: update.policy_kl),
        "policy/kl_max": largest(lambda update: update.policy_kl),
        "policy/ratio_mean": mean(lambda update: update.ratio_mean),
        "policy/ratio_max": largest(lambda update: update.ratio_max),
        "train/updates": float(len(updates)),
        "train/skipped": float(sum(update.num_skipped for update in updates)),
        "train/response_tokens": float(sum(update.num_tokens for update in updates if update.epoch == 0)),
    }
    for staleness in sorted({0} | {mismatch.staleness for update in updates for mismatch in update.mismatch}):
        measured = mismatch_of(updates, staleness)
        suffix = f"/staleness_{staleness}" if staleness else ""
        metrics[f"policy/logprob_gap{suffix}"] = _mean([(m.gap, m.num_tokens) for m in measured])
        metrics[f"policy/logprob_gap_max{suffix}"] = max((m.gap_max for m in measured), default=math.nan)
        metrics[f"policy/logprob_kl{suffix}"] = _mean([(m.kl, m.num_tokens) for m in measured])
    return metrics


def build_update_line(update: UpdateReport) -> dict[str, float]:
    """One optimizer step alone, by the same names."""
    line = {
        "train/epoch": float(update.epoch),
        "train/mini_batch": float(update.mini_batch),
        "train/response_tokens": float(update.num_tokens),
        "train/skipped": float(update.num_skipped),
        "policy/loss": update.loss,
        "policy/grad_norm": update.grad_norm,
        "policy/clip_fraction_low": update.clip_fraction_low,
        "policy/clip_fraction_high": update.clip_fraction_high,
        "policy/kl": update.policy_kl,
        "policy/ratio_mean": update.ratio_mean,
        "policy/ratio_max": update.ratio_max,
    }
    for mismatch in update.mismatch:
        suffix = f"/staleness_{mismatch.staleness}" if mismatch.staleness else ""
        line |= {f"policy/logprob_gap{suffix}": mismatch.gap, f"policy/logprob_kl{suffix}": mismatch.kl}
    return line


def mismatch_of(updates: Sequence[UpdateReport], staleness: int) -> list[Mismatch]:
    """Mismatch measured on tokens of one staleness, by mini-batch."""
    return [mismatch for update in updates for mismatch in update.mismatch if mismatch.staleness == staleness]


def _mean(pairs: Sequence[tuple[float, float]]) -> float:
    """Weighted mean of the finite values of (value, weight); not-a-number where there is none."""
    finite = [(value, weight) for value, weight in pairs if math.isfinite(value)]
    total = math.fsum(weight for _, weight in finite)
    return math.fsum(value * weight for value, weight in finite) / total if total else math.nan
