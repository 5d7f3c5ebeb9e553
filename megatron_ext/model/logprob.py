"""Log-probabilities and entropies of predicted tokens when the vocabulary is cut over tensor parallel ranks.

Shape legend: N predicted positions, C positions of one chunk, H hidden size, V vocabulary rows of this rank, B rows of
one block of them, R ranks.

Each chunk's logits are made, reduced to three numbers per position, and made again in the backward pass, in one buffer
[C, V] of at most `WORK_BYTES` however many positions there are; only where that holds all positions does it stay for
the backward pass. The gradient of the weight is added where it belongs, to Megatron's `main_grad`; nothing else of size
[V, H] is made. Ranks exchange the three numbers once:

    logsumexp over all  = logsumexp over ranks of each rank's logsumexp
    logit of the target = sum over ranks (0 where the rank does not hold it)
    entropy             = logsumexp - sum over ranks of (rank's share of the probability) * (rank's mean logit)

and none for the gradients, which are of a rank's own logits given these: with p the probability of token v,

    d logprob / d logit of v = [v is the target] - p
    d entropy / d logit of v = -p (log p + entropy)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_ext.packing.sampling_mask import LocalSamplingMask, RaggedInput

WORK_BYTES = {"cpu": 128 * 2**20, "cuda": 256 * 2**20}
"""By kind of device: size of a chunk's float32 logits, and of the rows of a low-precision weight that are worked on at
a time, in float32. Enough to keep the matrix products busy."""


def vocab_parallel_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    *,
    temperature: float,
    tp_group: dist.ProcessGroup | None,
    vocab_size: int,
    chunk_tokens: int | None = None,
    with_entropy: bool = False,
    fp32_head: bool = False,
    sampling_mask: RaggedInput | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target under softmax(hidden @ weight.T / temperature), and the entropy there if asked.

    With `sampling_mask` the softmax at each position is over the tokens that could be drawn there, the target among
    them.

    `hidden_NH` is the same on every rank of `tp_group`; `weight_VH` holds this rank's rows; rows from `vocab_size` on
    are padding and get no probability. N may be 0. Both results are float32 [N] (float64 where the weight is) and equal
    on every rank. Nothing is computed for an entropy that is not asked for, and nothing for the gradient of one that
    the loss does not use; with it the backward pass works in a second [C, V], as the forward pass does for the value.
    The gradient of `hidden_NH` is summed over the group, so it too is equal on every rank. A weight with a `main_grad`
    gets its gradient added there, and an empty one from autograd.

    `chunk_tokens` positions are computed at a time; by default as many as `WORK_BYTES` hold. With `fp32_head` the
    products are computed in float32 from hidden states and weights of lower precision, forward and backward; without it
    logits are rounded to the dtype of the weight before they become float32.

    Raises ValueError for a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature}: it must be positive; greedy has no log-probabilities to train")
    head = _Head(weight_VH, targets_N, temperature, tp_group, vocab_size, chunk_tokens, fp32_head, sampling_mask)
    logprobs_N, entropy_N = _VocabParallelLogprobs.apply(hidden_NH, weight_VH, head, with_entropy)
    return logprobs_N, entropy_N


class _Head:
    """The constants of one call, and the products of a chunk with the weight."""

    def __init__(
        self,
        weight_VH: Tensor,
        targets_N: Tensor,
        temperature: float,
        tp_group: dist.ProcessGroup | None,
        vocab_size: int,
        chunk_tokens: int | None,
        fp32_head: bool,
        sampling_mask: RaggedInput | None,
    ) -> None:
        self.tp_group = tp_group
        self.tp_size = dist.get_world_size(tp_group) if tp_group is not None else 1
        tp_rank = dist.get_rank(tp_group) if tp_group is not None else 0
        first_row = tp_rank * weight_VH.size(0)
        self.num_rows = max(0, min(weight_VH.size(0), vocab_size - first_row))
        self.temperature = temperature
        self.dtype = torch.promote_types(weight_VH.dtype, torch.float32)
        work_bytes = WORK_BYTES[weight_VH.device.type]
        self.chunk_tokens = chunk_tokens or max(1, work_bytes // (self.dtype.itemsize * max(self.num_rows, 1)))
        self.block_rows = max(1, self.num_rows)
        low_precision = weight_VH.dtype != self.dtype
        if low_precision:
            self.block_rows = max(1, work_bytes // (4 * weight_VH.size(1)))
        self.casts_weight = fp32_head and low_precision
        self.rounds_logits = low_precision and not fp32_head
        local_N = targets_N - first_row
        self.is_local_N = (local_N >= 0) & (local_N < self.num_rows)
        self.local_target_N = torch.where(self.is_local_N, local_N, 0)
        self.mask = None if sampling_mask is None else LocalSamplingMask(sampling_mask, first_row, self.num_rows)
        self.main_grad: Tensor | None = getattr(weight_VH, "main_grad", None)

    def chunks(self, hidden_NH: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Place, hidden states [C, H] in the dtype of the products, and room [C, V] for the logits, by chunk.

        The room is the same memory each time, without padding rows.
        """
        num_positions = hidden_NH.size(0)
        largest = min(self.chunk_tokens, num_positions)
        room_CV = torch.empty((largest, self.num_rows), dtype=self.dtype, device=hidden_NH.device)
        for start in range(0, num_positions, self.chunk_tokens):
            chunk = slice(start, min(start + self.chunk_tokens, num_positions))
            hidden_CH = hidden_NH[chunk].float() if self.casts_weight else hidden_NH[chunk]
            yield chunk, hidden_CH, room_CV[: hidden_CH.size(0)]

    def fill_logits(self, hidden_CH: Tensor, weight_VH: Tensor, out_CV: Tensor, chunk: slice) -> None:
        """Logits at the sampling temperature; -inf where a token could not be drawn."""
        for rows, weight_BH in self._blocks(weight_VH):
            if self.rounds_logits:
                out_CV[:, rows] = hidden_CH @ weight_BH.t()
            else:
                torch.mm(hidden_CH, weight_BH.t(), out=out_CV[:, rows])
        if self.temperature != 1.0:
            out_CV.div_(self.temperature)
        if self.mask is not None:
            self.mask.restrict(out_CV, chunk)

    def backward_products(
        self, grad_CV: Tensor, hidden_CH: Tensor, weight_VH: Tensor, grad_weight_VH: Tensor | None
    ) -> Tensor:
        """Adds the chunk's gradient to `grad_weight_VH`, if given; returns that of the hidden states [C, H]."""
        grad_hidden_CH = torch.zeros_like(hidden_CH, dtype=self.dtype)
        for rows, weight_BH in self._blocks(weight_VH):
            grad_CB = grad_CV[:, rows].to(weight_BH.dtype)
            _add_product(grad_hidden_CH, grad_CB, weight_BH)
            if grad_weight_VH is not None:
                _add_product(grad_weight_VH[rows], grad_CB.t(), hidden_CH)
        return grad_hidden_CH

    def _blocks(self, weight_VH: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The rows that count, in the dtype of the products, `block_rows` at a time."""
        for start in range(0, self.num_rows, self.block_rows):
            rows = slice(start, min(start + self.block_rows, self.num_rows))
            yield rows, weight_VH[rows].float() if self.casts_weight else weight_VH[rows]


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, without a temporary where the dtypes allow."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


class _VocabParallelLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, head: _Head, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        (lse_N, target_logit_N, mean_logit_N), ctx.kept = _reduce_rows(hidden_NH, weight_VH, head, with_entropy)
        if head.tp_size > 1 and hidden_NH.size(0) > 0:
            lse_N, target_logit_N, mean_logit_N = _merge_ranks(torch.stack([lse_N, target_logit_N, mean_logit_N]), head)
        entropy_N = lse_N - mean_logit_N if with_entropy else None
        ctx.save_for_backward(hidden_NH, weight_VH, lse_N, entropy_N)
        ctx.head = head
        ctx.set_materialize_grads(False)  # None says that the loss does not use an output
        return target_logit_N - lse_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Any
    ) -> tuple[Tensor, Tensor | None, None, None]:
        hidden_NH, weight_VH, lse_N, entropy_N = ctx.saved_tensors
        head: _Head = ctx.head
        grad_N = torch.zeros_like(lse_N) if grad_outputs[0] is None else grad_outputs[0]
        entropy_grad_N: Tensor | None = grad_outputs[1]
        grad_hidden_NH = torch.empty_like(hidden_NH)
        grad_weight_VH: Tensor | None = None
        if ctx.needs_input_grad[1]:
            grad_weight_VH = head.main_grad
            if grad_weight_VH is None:
                grad_weight_VH = torch.zeros_like(weight_VH, dtype=head.dtype)
        kept, ctx.kept = ctx.kept, None  # a second backward pass computes it again
        for chunk, hidden_CH, room_CV in (
            [(kept.place, kept.hidden_CH, kept.exp_CV)] if kept else head.chunks(hidden_NH)
        ):
            # A logit is the product divided by the temperature.
            grad_C = grad_N[chunk].to(head.dtype) / head.temperature
            if entropy_grad_N is not None:
                if kept:
                    log_p_CV = room_CV.log_().add_((kept.shift_C - lse_N)[:, None])
                else:
                    head.fill_logits(hidden_CH, weight_VH, room_CV, chunk)
                    log_p_CV = room_CV.sub_(lse_N[chunk, None])
                entropy_grad_C = entropy_grad_N[chunk].to(head.dtype) / head.temperature
                grad_CV = _gradient_with_entropy(log_p_CV, grad_C, entropy_grad_C, entropy_N[chunk])
            elif kept:
                grad_CV = room_CV.mul_((-grad_C * (kept.shift_C - lse_N).exp())[:, None])
            else:
                head.fill_logits(hidden_CH, weight_VH, room_CV, chunk)
                grad_CV = room_CV.sub_(lse_N[chunk, None]).exp_().mul_(-grad_C[:, None])
            if head.num_rows:
                at_target_C1 = torch.where(head.is_local_N[chunk], grad_C, 0.0)[:, None]
                grad_CV.scatter_add_(1, head.local_target_N[chunk, None], at_target_C1)
            grad_hidden_NH[chunk] = head.backward_products(grad_CV, hidden_CH, weight_VH, grad_weight_VH)
        if head.tp_size > 1 and hidden_NH.size(0) > 0:
            dist.all_reduce(grad_hidden_NH, group=head.tp_group)
        if grad_weight_VH is head.main_grad:
            grad_weight_VH = _no_gradient(weight_VH) if grad_weight_VH is not None else None
        return grad_hidden_NH, None if grad_weight_VH is None else grad_weight_VH.to(weight_VH.dtype), None, None


def _gradient_with_entropy(log_p_CV: Tensor, grad_C: Tensor, entropy_grad_C: Tensor, entropy_C: Tensor) -> Tensor:
    """Gradient of the logits [C, V], without what the target adds, in the memory of `log_p_CV`.

    -p (grad + entropy_grad (log p + entropy)), and 0 for a token of probability 0, whose logarithm is -inf.
    """
    p_CV = log_p_CV.exp()
    log_p_CV.clamp_(min=_LOG_OF_NOTHING)
    log_p_CV.mul_(-entropy_grad_C[:, None]).sub_((grad_C + entropy_grad_C * entropy_C)[:, None])
    return log_p_CV.mul_(p_CV)


_LOG_OF_NOTHING = -1e4
"""A finite logarithm below that of every number above 0, in float64 too."""


def _no_gradient(weight_VH: Tensor) -> Tensor:
    """A zero of the weight's shape that takes no memory: Megatron's hook on the weight wants to see a gradient."""
    indices = torch.empty((1, 0), dtype=torch.int64, device=weight_VH.device)
    values = weight_VH.new_empty((0, weight_VH.size(1)))
    return torch.sparse_coo_tensor(indices, values, weight_VH.shape, check_invariants=False)


@dataclass(frozen=True)
class _Kept:
    """Exponentials of the only chunk, kept for the backward pass: what one chunk takes is within the bound anyway."""

    place: slice
    hidden_CH: Tensor
    exp_CV: Tensor
    """exp(logit - shift) of each position, so probability * exp(logsumexp - shift)."""
    shift_C: Tensor


def _reduce_rows(
    hidden_NH: Tensor, weight_VH: Tensor, head: _Head, with_entropy: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], _Kept | None]:
    """This rank's logsumexp, target logit (0 where not here) and mean logit under its own probabilities, each [N].

    And the exponentials, if there is one chunk.
    """
    kept: _Kept | None = None
    lse_N = hidden_NH.new_empty(hidden_NH.size(0), dtype=head.dtype)
    target_logit_N, mean_logit_N = torch.zeros_like(lse_N), torch.zeros_like(lse_N)
    for chunk, hidden_CH, logits_CV in head.chunks(hidden_NH):
        if head.num_rows == 0:  # a rank that holds padding only
            lse_N[chunk] = -torch.inf
            continue
        head.fill_logits(hidden_CH, weight_VH, logits_CV, chunk)
        picked_C = logits_CV.gather(1, head.local_target_N[chunk, None])[:, 0]
        target_logit_N[chunk] = torch.where(head.is_local_N[chunk], picked_C, 0.0)
        if with_entropy:
            lse_N[chunk] = torch.logsumexp(logits_CV, dim=-1)
            shift_C = _finite(lse_N[chunk])
            exp_CV = (logits_CV - shift_C[:, None]).exp_()
            if head.mask is not None:
                logits_CV.masked_fill_(logits_CV == -torch.inf, 0.0)  # of probability 0: their product is to be 0
            mean_logit_N[chunk] = logits_CV.mul_(exp_CV).sum(-1)
        else:  # in place: torch.logsumexp would make a second [C, V]
            shift_C = _finite(logits_CV.amax(-1))
            exp_CV = logits_CV.sub_(shift_C[:, None]).exp_()
            lse_N[chunk] = exp_CV.sum(-1).log_().add_(shift_C)
        if hidden_NH.size(0) <= head.chunk_tokens:
            kept = _Kept(chunk, hidden_CH, exp_CV, shift_C)
    return (lse_N, target_logit_N, mean_logit_N), kept


def _finite(shift_C: Tensor) -> Tensor:
    """0 for positions where this rank holds no token that could be drawn."""
    return torch.where(shift_C == -torch.inf, 0.0, shift_C)


def _merge_ranks(mine_3N: Tensor, head: _Head) -> tuple[Tensor, Tensor, Tensor]:
    """The three over the whole vocabulary, by the formulas at the top. One exchange, in rank order: equal bits."""
    all_3N = mine_3N.new_empty((head.tp_size * mine_3N.size(0), mine_3N.size(1)))
    dist.all_gather_into_tensor(all_3N, mine_3N, group=head.tp_group)
    lse_RN, target_logit_RN, mean_logit_RN = all_3N.view(head.tp_size, *mine_3N.shape).unbind(1)
    lse_N = torch.logsumexp(lse_RN, dim=0)
    share_RN = (lse_RN - lse_N).exp()
    return lse_N, target_logit_RN.sum(0), (share_RN * mean_logit_RN).sum(0)
