"""Aggregations: how losses per token add up to the loss of an optimizer step.

Nothing here averages. An aggregation gives a SUM over the tokens of one micro-batch and that micro-batch's share of the
denominator; the sums of both, over all micro-batches and data parallel ranks, are divided by each other once. A mean
taken here would weigh tokens by how they were packed.

Shape suffix: N = response tokens of one micro-batch, of all its sequences, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridflow.algorithms.objective import Aggregated, TokenBatch
from hybridflow.errors import ConfigError


@dataclass(frozen=True)
class TokenMean:
    """Mean over all tokens of the step (DAPO, arXiv 2503.14476): tokens of long completions weigh like others."""

    columns: ClassVar = ()

    def __call__(self, loss_N: Tensor, tokens: TokenBatch) -> Aggregated:
        return Aggregated(loss_N.sum(), loss_N.numel())


@dataclass(frozen=True)
class SequenceMean:
    """Mean over sequences of each sequence's mean (GRPO as written, GSPO, QwenLong-L1's supervised loss).

    `share` is 1 / the counted tokens of the token's sequence. The denominator counts sequences, at their first counted
    token (`first`), so that each is counted once however it is cut.
    """

    columns: ClassVar = ("share", "first")
    averages_sequences: ClassVar = True

    def __call__(self, loss_N: Tensor, tokens: TokenBatch) -> Aggregated:
        return Aggregated((tokens.columns["share"] * loss_N).sum(), tokens.columns["first"].sum())


@dataclass(frozen=True)
class ConstantNormaliser:
    """Mean over sequences of each sequence's sum / `normaliser_tokens` (Dr. GRPO, arXiv 2503.20783).

    A token weighs the same whatever the length of its sequence and of others. The authors' code divides by the longest
    completion that may be sampled, as TRL's `dr_grpo` does, and so does a run that does not set the number. Deviation:
    sequences of which no token counts (groups of equal rewards are filtered out before) are not in the mean.
    """

    normaliser_tokens: int
    columns: ClassVar = ("first",)

    def __post_init__(self) -> None:
        if not self.normaliser_tokens:
            raise ConfigError(
                f"the aggregation constant divides by normaliser_tokens, which is {self.normaliser_tokens}. Remedy: "
                "set algorithm.normaliser_tokens"
            )

    def __call__(self, loss_N: Tensor, tokens: TokenBatch) -> Aggregated:
        return Aggregated(loss_N.sum() / self.normaliser_tokens, tokens.columns["first"].sum())
