"""Corrections of rollouts: weights for tokens that the engine drew from another distribution than the trainer's.

The ratio of a token is pi_trainer / pi_engine: the trainer's probability before the update (`old_logprobs`) by the
engine's while it decoded (`rollout_logprobs`). Both are of the distribution that the token was drawn from, at the
sampling temperature and over the tokens that top-p left in, so that a ratio of 1 says that they agree. Of a token that
an older policy decoded it holds what the policy has learnt since.

A weight multiplies the policy's loss of its token and has no gradient. It leaves the denominator alone: a masked token,
and a sequence of masked tokens, counts in it as before, as in slime (`--use-opsm`) and in DeepSeek-V3.2's formula.
verl takes masked tokens out of the denominator ("rejection sampling"), and then those that are left weigh more the more
are masked: exactly the steps with the worst data would be the largest. Counting them, the sum is the estimate
that importance sampling makes, of the same mean; a step of which everything is masked changes nothing; and the
denominator is known before any weight is, on each rank alone.

Shape legend: N counted tokens of one micro-batch on this rank, R its rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hybridflow.algorithms.losses import MAX_LOG_RATIO
from hybridflow.algorithms.objective import ADVANTAGES, OLD_LOGPROBS, TokenBatch, Weights
from hybridflow.algorithms.reductions import Reduction
from hybridflow.algorithms.weights import any_of_row, rows_of

ROLLOUT_LOGPROBS = "rollout_logprobs"
NO_METRICS: Mapping[str, Reduction] = {}


@dataclass(frozen=True)
class TruncatedImportanceSampling:
    """min(ratio, tis_cap) for each token: importance sampling with a bound on its variance.

    Source: "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (Yao et al., 2025,
    fengyao.notion.site/off-policy-rl), per token; cap 2.0 as in verl (`rollout_is_threshold`) and slime (`--tis-clip`).
    Deviation: the log ratio is clamped to +-MAX_LOG_RATIO, as in verl.
    """

    tis_cap: float
    columns: ClassVar = (OLD_LOGPROBS, ROLLOUT_LOGPROBS)
    metrics: ClassVar = {
        "correction/capped_fraction": Reduction("mean"),
        "correction/capped_sequence_fraction": Reduction("mean", of_sequences=True),
    }

    def __call__(self, tokens: TokenBatch) -> Weights:
        ratio_N = _ratio(tokens)
        capped_N = (ratio_N > self.tis_cap).to(ratio_N.dtype)
        metrics = {
            "correction/capped_fraction": capped_N,
            "correction/capped_sequence_fraction": any_of_row(capped_N, rows_of(tokens)),
        }
        return Weights(ratio_N.clamp(max=self.tis_cap), metrics)


@dataclass(frozen=True)
class IcePop:
    """The ratio of each token where it is in [icepop_low, icepop_high], and 0 elsewhere.

    Source: IcePop of Ring-1T (arXiv 2510.18855), with its bounds of 0.5 and 5.0; slime's `icepop_function` is the same.
    """

    icepop_low: float
    icepop_high: float
    columns: ClassVar = (OLD_LOGPROBS, ROLLOUT_LOGPROBS)
    metrics: ClassVar = NO_METRICS

    def __call__(self, tokens: TokenBatch) -> Weights:
        ratio_N = _ratio(tokens)
        is_kept_N = (ratio_N >= self.icepop_low) & (ratio_N <= self.icepop_high)
        return Weights(torch.where(is_kept_N, ratio_N, 0.0))


@dataclass(frozen=True)
class GeometricMask:
    """0 for all tokens of a sequence whose geometric mean ratio is out of [geometric_low, geometric_high], else 1.

    Source: "When Speed Kills Stability" (Liu, Li et al., 2025), verl's `rollout_rs = geometric`. The mean, not the
    product, because a product leaves any bounds as sequences get longer. A bound that is None does not bind.
    """

    geometric_low: float | None
    geometric_high: float | None
    columns: ClassVar = (OLD_LOGPROBS, ROLLOUT_LOGPROBS)
    metrics: ClassVar = NO_METRICS

    def __call__(self, tokens: TokenBatch) -> Weights:
        rows = rows_of(tokens)
        mean_R = rows.mean(_log_ratio(tokens))
        return Weights(rows.spread(1 - _is_outside(mean_R, self.geometric_low, self.geometric_high)))


@dataclass(frozen=True)
class OutlierMask:
    """0 for all tokens of a sequence of which any token's ratio is out of [outlier_low, outlier_high], else 1.

    Source: verl's `rollout_token_veto_threshold` (1e-4 to 1e-6, the lower bound), prime-rl's `sequence_mask_low` and
    `_high`: one token that the trainer holds for impossible says that the engine read another sequence. A bound that is
    None does not bind.
    """

    outlier_low: float | None
    outlier_high: float | None
    columns: ClassVar = (OLD_LOGPROBS, ROLLOUT_LOGPROBS)
    metrics: ClassVar = NO_METRICS

    def __call__(self, tokens: TokenBatch) -> Weights:
        outside_N = _is_outside(_log_ratio(tokens), self.outlier_low, self.outlier_high)
        return Weights(1 - any_of_row(outside_N, rows_of(tokens)))


@dataclass(frozen=True)
class OffPolicyMask:
    """0 where the advantage is negative and the sequence's KL(old || policy in update) is above off_policy_delta.

    Source: DeepSeek-V3.2 (arXiv 2512.02556 Eq. 9). The KL is estimated by the mean of log(pi_old / pi) over the
    sequence; pi_old there is "the sampling probability directly returned by the inference framework", so the KL is of
    engine and policy both: `off_policy_against = "engine"`. slime (`--use-opsm`, delta 1e-4) takes the trainer's before
    the update, `"trainer"`, unless it is told otherwise; then nothing is masked in a step's first optimizer step. The
    paper does not publish its delta.
    """

    off_policy_delta: float
    off_policy_against: Literal["engine", "trainer"]
    metrics: ClassVar = NO_METRICS

    @property
    def columns(self) -> tuple[str, ...]:
        return (ADVANTAGES, self._old)

    @property
    def _old(self) -> str:
        return ROLLOUT_LOGPROBS if self.off_policy_against == "engine" else OLD_LOGPROBS

    def __call__(self, tokens: TokenBatch) -> Weights:
        rows = rows_of(tokens)
        kl_R = rows.mean(tokens.columns[self._old] - tokens.logprobs_N.detach())
        is_masked_N = (tokens.columns[ADVANTAGES] < 0) & rows.spread(kl_R > self.off_policy_delta)
        return Weights(1 - is_masked_N.to(kl_R.dtype))


def _log_ratio(tokens: TokenBatch) -> Tensor:
    return tokens.columns[OLD_LOGPROBS] - tokens.columns[ROLLOUT_LOGPROBS]


def _ratio(tokens: TokenBatch) -> Tensor:
    return _log_ratio(tokens).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _is_outside(log_ratios: Tensor, low: float | None, high: float | None) -> Tensor:
    """0 and 1, of any shape: whether the ratio is below the one or above the other."""
    outside = torch.zeros_like(log_ratios, dtype=torch.bool)
    if low is not None:
        outside |= log_ratios < math.log(low)
    if high is not None:
        outside |= log_ratios > math.log(high)
    return outside.to(log_ratios.dtype)
