"""Measures of policies on sampled tokens: how far two of them are apart, and how random the one that decoded is.

Legend: N tokens. All logprobs are of the sampled token, in the distribution that it was drawn from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridflow.algorithms.losses import MAX_LOG_RATIO
from hybridflow.algorithms.objective import ENTROPY, OLD_LOGPROBS, TokenBatch
from hybridflow.algorithms.reductions import STALENESS, Reduction


def compute_kl(log_ratio_N: Tensor) -> Tensor:
    """[N] Schulman's k3 estimator of KL(q || p): r - 1 - log r with r = p / q of a token that q drew.

    Unbiased, and never negative (joschu.net/blog/kl-approx.html).
    """
    return log_ratio_N.expm1() - log_ratio_N


@dataclass(frozen=True)
class Entropy:
    """Entropy of the probabilities that tokens are drawn from, of the policy that decoded.

    With top-p it is that of the renormalised probabilities of the tokens that are left in, which is smaller than that
    of the policy, and has another name.
    """

    top_p: float
    columns: ClassVar = (ENTROPY,)
    first_pass_only: ClassVar = True

    @property
    def name(self) -> str:
        return "policy/entropy_within_top_p" if self.top_p < 1 else "policy/entropy"

    @property
    def metrics(self) -> Mapping[str, Reduction]:
        return {self.name: Reduction("mean", of_each_update=False)}

    def __call__(self, tokens: TokenBatch) -> Mapping[str, Tensor]:
        return {self.name: tokens.columns[ENTROPY]}


@dataclass(frozen=True)
class PolicyRatio:
    """The policy in update, just before its optimizer step, against the one before the update.

    `policy/kl` estimates KL(old || new): 0 in the first optimizer step. Log ratios are bounded above
    by MAX_LOG_RATIO.
    """

    columns: ClassVar = (OLD_LOGPROBS,)
    metrics: ClassVar = {
        "policy/kl": Reduction("mean", with_max=True),
        "policy/ratio_mean": Reduction("mean"),
        "policy/ratio_max": Reduction("max"),
    }
    first_pass_only: ClassVar = False

    def __call__(self, tokens: TokenBatch) -> Mapping[str, Tensor]:
        log_ratio_N = tokens.logprobs_N.detach() - tokens.columns[OLD_LOGPROBS]
        log_ratio_N = log_ratio_N.clamp(max=MAX_LOG_RATIO)
        ratio_N = log_ratio_N.exp()
        return {"policy/kl": compute_kl(log_ratio_N), "policy/ratio_mean": ratio_N, "policy/ratio_max": ratio_N}


@dataclass(frozen=True)
class EngineMismatch:
    """The trainer's probabilities before the update against those of the engine that decoded: mean and largest
    |trainer - engine|, and estimates of KL(engine || trainer).

    Of tokens of the present policy it is the difference of engine and trainer alone; of older ones it holds what the
    policy has learnt since, so these are told apart. For the estimate log ratios are bounded as in `PolicyRatio`.
    """

    columns: ClassVar = (OLD_LOGPROBS, "rollout_logprobs", STALENESS)
    metrics: ClassVar = {
        "policy/logprob_gap": Reduction("mean", by_staleness=True),
        "policy/logprob_gap_max": Reduction("max", by_staleness=True, of_each_update=False),
        "policy/logprob_kl": Reduction("mean", by_staleness=True),
    }
    first_pass_only: ClassVar = True

    def __call__(self, tokens: TokenBatch) -> Mapping[str, Tensor]:
        log_ratio_N = tokens.columns[OLD_LOGPROBS] - tokens.columns["rollout_logprobs"]
        gap_N = log_ratio_N.abs()
        return {
            "policy/logprob_gap": gap_N,
            "policy/logprob_gap_max": gap_N,
            "policy/logprob_kl": compute_kl(log_ratio_N.clamp(max=MAX_LOG_RATIO)),
        }
