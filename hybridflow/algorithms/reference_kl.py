"""Estimates of KL(policy || reference) from tokens that the policy drew: a term of the loss, and a price in the reward.

Per token, with r = pi_ref / pi and w = pi / pi_old:

    k1 = -log r        k2 = (log r)^2 / 2        k3 = r - 1 - log r        unbiased = w (r - 1 - log r)

Sources: k1, k2, k3: J. Schulman, joschu.net/blog/kl-approx.html; k3 in the loss: GRPO, arXiv 2402.03300, eq. 4;
unbiased: DeepSeek-V3.2, arXiv 2512.02556, eq. 7. verl (trainer/ppo/core_algos.py, `kl_penalty_forward`) and slime
(utils/ppo_utils.py, `compute_approx_kl` with `importance_ratio`) have the same formulas.

A value that is right in the mean need not have a gradient that is. In the mean over tokens drawn by pi itself (the
first optimizer step of a batch) the gradient in the loss is

    k1          0: grad log pi has mean 0. The term is noise, and holds nothing back.
    k2          that of KL(pi || ref)
    k3          that of KL(ref || pi): the other direction, which is about the same where the two are near
    unbiased    that of KL(pi || ref), also over tokens that pi_old drew, as the weight carries a gradient of its own

and verl's "k3+" is the value of k3 with the gradient of k2. In the reward only the value counts: the policy gradient of
a completion's sum of k1 is that of the KL of whole completions.

Deviations: in the exponentials log r is bounded above by MAX_LOG_RATIO, where the gradient ends, and log w on both
sides. Below nothing overflows, so there k3 and its gradient are exact: a policy far above its reference is held back.
verl clamps log r to +-20, and k3 itself to +-10, where its gradient ends. verl's and slime's price in the reward is
per token; here a completion has one reward, and its price is the sum over its tokens.

With top-p all three are probabilities within the tokens that the policy left in, so it is the KL of these. N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hybridflow.algorithms.losses import MAX_LOG_RATIO
from hybridflow.algorithms.objective import OLD_LOGPROBS, REF_LOGPROBS, TermValue, TokenBatch
from hybridflow.algorithms.reductions import Reduction

Estimator = Literal["k1", "k2", "k3", "unbiased"]


def estimate_kl(
    estimator: Estimator, logprobs_N: Tensor, ref_logprobs_N: Tensor, old_logprobs_N: Tensor | None = None
) -> Tensor:
    """[N] estimates in nats, in the dtype of logprobs_N; the graph is that of `logprobs_N`.

    Args:
        estimator: See the module; "unbiased" alone reads `old_logprobs_N`.
        logprobs_N: Of the policy.
        ref_logprobs_N: Of the reference, without a graph.
        old_logprobs_N: Of the policy that drew the tokens, without a graph.
    """
    log_ratio_N = ref_logprobs_N.detach() - logprobs_N
    if estimator == "k1":
        return -log_ratio_N
    if estimator == "k2":
        return log_ratio_N.square() / 2
    log_ratio_N = log_ratio_N.clamp(max=MAX_LOG_RATIO)
    k3_N = log_ratio_N.expm1() - log_ratio_N
    if estimator == "k3":
        return k3_N
    assert old_logprobs_N is not None
    return (logprobs_N - old_logprobs_N.detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * k3_N


@dataclass(frozen=True)
class ReferenceKL:
    """The term of the loss: `kl_coefficient` times the estimate, per token; it adds up as the policy loss does."""

    kl_coefficient: float
    kl_estimator: Estimator
    metrics: ClassVar[Mapping[str, Reduction]] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        return (REF_LOGPROBS, OLD_LOGPROBS) if self.kl_estimator == "unbiased" else (REF_LOGPROBS,)

    def __call__(self, tokens: TokenBatch) -> TermValue:
        columns = tokens.columns
        estimate_N = estimate_kl(self.kl_estimator, tokens.logprobs_N, columns[REF_LOGPROBS], columns.get(OLD_LOGPROBS))
        return TermValue(self.kl_coefficient * estimate_N)


@dataclass(frozen=True)
class ReferenceDistance:
    """`policy/ref_kl`: the k3 estimate of the policy in update, whatever the term's, so that runs compare."""

    columns: ClassVar = (REF_LOGPROBS,)
    metrics: ClassVar = {"policy/ref_kl": Reduction("mean")}
    first_pass_only: ClassVar = False

    def __call__(self, tokens: TokenBatch) -> Mapping[str, Tensor]:
        return {"policy/ref_kl": estimate_kl("k3", tokens.logprobs_N.detach(), tokens.columns[REF_LOGPROBS])}


def compute_kl_price(
    estimator: Estimator, coefficient: float, logprobs: Sequence[float], ref_logprobs: Sequence[float]
) -> float:
    """The price of a completion: `coefficient` times the sum of the estimates of its tokens, to be subtracted.

    Example: compute_kl_price("k1", 0.5, [-1.0, -2.0], [-1.5, -3.0]) == 0.75
    """
    policy_T, ref_T = (torch.tensor(values, dtype=torch.float64) for values in (logprobs, ref_logprobs))
    return coefficient * estimate_kl(estimator, policy_T, ref_T).sum().item()
