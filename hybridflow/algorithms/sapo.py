"""SAPO: a soft gate in the place of the clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hybridflow.algorithms.losses import compute_ratio
from hybridflow.algorithms.objective import ADVANTAGES, OLD_LOGPROBS, TermValue, TokenBatch
from hybridflow.algorithms.reductions import Reduction

GATE = "policy/gate_mean"


@dataclass(frozen=True)
class SoftGate:
    """-(4 / tau) sigmoid(tau (r - 1)) A, with r = pi / pi_old per token, and tau = tau_pos where A > 0, else tau_neg.

    Source: SAPO (arXiv 2511.20347), as ms-swift and Trinity-RFT (`SAPOPolicyLossFn`) have it, with tau_pos 1.0 and
    tau_neg 1.05: a negative advantage raises many unsampled tokens, so its gate is the steeper one. The paper's
    aggregation is `sequence_mean`. The gradient is that of -r A times the gate 4 p (1 - p), p = sigmoid(tau (r - 1)),
    which is 1 at r = 1 and falls on both sides; `policy/gate_mean` is its mean.
    Deviation: log r is clamped to +-MAX_LOG_RATIO; the gate is 0 to the last digit at the upper bound.
    """

    tau_pos: float
    tau_neg: float
    columns: ClassVar = (ADVANTAGES, OLD_LOGPROBS)
    metrics: ClassVar = {GATE: Reduction("mean")}

    def __call__(self, tokens: TokenBatch) -> TermValue:
        ratio_N, advantages_N = compute_ratio(
            tokens.logprobs_N, tokens.columns[OLD_LOGPROBS], tokens.columns[ADVANTAGES]
        )
        tau_pos, tau_neg = ratio_N.new_tensor([self.tau_pos, self.tau_neg])
        tau_N = torch.where(advantages_N > 0, tau_pos, tau_neg)
        open_N = torch.sigmoid(tau_N * (ratio_N - 1))
        loss_N = -(4 / tau_N) * open_N * advantages_N
        return TermValue(loss_N, {GATE: (4 * open_N * (1 - open_N)).detach()})
