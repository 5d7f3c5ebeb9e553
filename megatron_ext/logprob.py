"""Log-probabilities and entropies of predicted tokens when the vocabulary is cut over tensor parallel ranks.

Shape legend: N predicted positions, C positions of one chunk, H hidden size, V vocabulary rows of this rank, R ranks.

The logits are never kept: each chunk's are made, reduced to three numbers per position, and made again in the backward
pass. So memory is [C, V] however many positions there are. Ranks exchange those three numbers once:

    logsumexp over all  = logsumexp over ranks of each rank's logsumexp
    logit of the target = sum over ranks (0 where the rank does not hold it)
    entropy             = logsumexp - sum over ranks of (rank's share of the probability) * (rank's mean logit)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def vocab_parallel_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    *,
    temperature: float,
    tp_group: dist.ProcessGroup | None,
    vocab_size: int,
    chunk_tokens: int = 1024,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target under softmax(hidden @ weight.T / temperature), and the entropy there if asked.

    `hidden_NH` is the same on every rank of `tp_group`; `weight_VH` holds this rank's rows; rows from `vocab_size` on
    are padding and get no probability. N may be 0. Both results are float32 [N] and equal on every rank. The entropy
    carries no gradient. The gradient of `hidden_NH` is summed over the group, so it too is equal on every rank.

    Raises ValueError for a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature}: it must be positive; greedy has no log-probabilities to train")
    head = _Head(weight_VH, targets_N, temperature, tp_group, vocab_size, chunk_tokens)
    logprobs_N, entropy_N = _VocabParallelLogprobs.apply(hidden_NH, weight_VH, head, with_entropy)
    return logprobs_N, entropy_N


class _Head:
    """The constants of one call, and the logits of a chunk made from them."""

    def __init__(
        self,
        weight_VH: Tensor,
        targets_N: Tensor,
        temperature: float,
        tp_group: dist.ProcessGroup | None,
        vocab_size: int,
        chunk_tokens: int,
    ) -> None:
        self.tp_group = tp_group
        self.tp_size = dist.get_world_size(tp_group) if tp_group is not None else 1
        tp_rank = dist.get_rank(tp_group) if tp_group is not None else 0
        first_row = tp_rank * weight_VH.size(0)
        self.num_rows = max(0, min(weight_VH.size(0), vocab_size - first_row))
        self.temperature = temperature
        self.chunk_tokens = chunk_tokens
        local_N = targets_N - first_row
        self.is_local_N = (local_N >= 0) & (local_N < self.num_rows)
        self.local_target_N = torch.where(self.is_local_N, local_N, 0)

    def chunks(self, num_positions: int) -> list[slice]:
        starts = range(0, num_positions, self.chunk_tokens)
        return [slice(start, min(start + self.chunk_tokens, num_positions)) for start in starts]

    def logits(self, hidden_CH: Tensor, weight_VH: Tensor) -> Tensor:
        """float32 [C, V] without padding rows, at the sampling temperature."""
        logits_CV = (hidden_CH @ weight_VH[: self.num_rows].t()).float()
        return logits_CV.div_(self.temperature) if self.temperature != 1.0 else logits_CV


class _VocabParallelLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, head: _Head, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        lse_N, target_logit_N, mean_logit_N = _reduce_rows(hidden_NH, weight_VH, head, with_entropy)
        if head.tp_size > 1 and hidden_NH.size(0) > 0:
            lse_N, target_logit_N, mean_logit_N = _merge_ranks(torch.stack([lse_N, target_logit_N, mean_logit_N]), head)
        ctx.save_for_backward(hidden_NH, weight_VH, lse_N)
        ctx.head = head
        entropy_N = lse_N - mean_logit_N if with_entropy else None
        if entropy_N is not None:
            ctx.mark_non_differentiable(entropy_N)
        return target_logit_N - lse_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Any
    ) -> tuple[Tensor, Tensor, None, None]:
        grad_N: Tensor = grad_outputs[0]  # the entropy has none
        hidden_NH, weight_VH, lse_N = ctx.saved_tensors
        head: _Head = ctx.head
        rows = head.num_rows
        grad_hidden_NH = torch.empty_like(hidden_NH)
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32)
        for chunk in head.chunks(hidden_NH.size(0)):
            hidden_CH = hidden_NH[chunk]
            probs_CV = head.logits(hidden_CH, weight_VH).sub_(lse_N[chunk, None]).exp_()
            # d logprob / d logit = [is target] - p, and a logit is the product divided by the temperature.
            grad_C = grad_N[chunk].float() / head.temperature
            grad_CV = probs_CV.mul_(-grad_C[:, None])
            at_target_C1 = torch.where(head.is_local_N[chunk], grad_C, 0.0)[:, None]
            if rows:
                grad_CV.scatter_add_(1, head.local_target_N[chunk, None], at_target_C1)
            grad_CV = grad_CV.to(weight_VH.dtype)
            grad_hidden_NH[chunk] = grad_CV @ weight_VH[:rows]
            grad_weight_VH[:rows] += grad_CV.t() @ hidden_CH
        if head.tp_size > 1 and hidden_NH.size(0) > 0:
            dist.all_reduce(grad_hidden_NH, group=head.tp_group)
        return grad_hidden_NH, grad_weight_VH.to(weight_VH.dtype), None, None


def _reduce_rows(
    hidden_NH: Tensor, weight_VH: Tensor, head: _Head, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's logsumexp, target logit (0 where not here) and mean logit under its own probabilities, each [N]."""
    lse_N = hidden_NH.new_empty(hidden_NH.size(0), dtype=torch.float32)
    target_logit_N, mean_logit_N = torch.zeros_like(lse_N), torch.zeros_like(lse_N)
    for chunk in head.chunks(hidden_NH.size(0)):
        if head.num_rows == 0:  # a rank that holds padding only
            lse_N[chunk] = -torch.inf
            continue
        logits_CV = head.logits(hidden_NH[chunk], weight_VH)
        lse_N[chunk] = torch.logsumexp(logits_CV, dim=-1)
        picked_C = logits_CV.gather(1, head.local_target_N[chunk, None])[:, 0]
        target_logit_N[chunk] = torch.where(head.is_local_N[chunk], picked_C, 0.0)
        if with_entropy:
            probs_CV = (logits_CV - lse_N[chunk, None]).exp_()
            mean_logit_N[chunk] = probs_CV.mul_(logits_CV).sum(-1)
    return lse_N, target_logit_N, mean_logit_N


def _merge_ranks(mine_3N: Tensor, head: _Head) -> tuple[Tensor, Tensor, Tensor]:
    """The three over the whole vocabulary, by the formulas at the top. One exchange, in rank order: equal bits."""
    all_3N = mine_3N.new_empty((head.tp_size * mine_3N.size(0), mine_3N.size(1)))
    dist.all_gather_into_tensor(all_3N, mine_3N, group=head.tp_group)
    lse_RN, target_logit_RN, mean_logit_RN = all_3N.view(head.tp_size, *mine_3N.shape).unbind(1)
    lse_N = torch.logsumexp(lse_RN, dim=0)
    share_RN = (lse_RN - lse_N).exp()
    return lse_N, target_logit_RN.sum(0), (share_RN * mean_logit_RN).sum(0)
