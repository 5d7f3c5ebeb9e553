"""Causal attention when the tokens of every segment are spread over context parallel ranks (see context_split).

Two ways, equal in result:

    all_gather    every rank gathers all keys and values and attends from its own queries. A query of chunk c sees its
                  own chunk causally and the c chunks before it in full; the two parts merge by log-sum-exp.
    all_to_all    ranks trade tokens for heads, attend over whole segments for h / cp heads, and trade back
                  (Jacobs et al. 2023, DeepSpeed Ulysses, arXiv 2309.14509).

Memory is linear in tokens both ways. Gathered keys and values live only while a layer computes: the backward pass
gathers them again.

Shape legend: T tokens of this rank, W = cp * T tokens of all, h query heads, g key-value heads, d head dim. Tokens are
in rank, gathered or whole order, as context_split defines them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_ext.attention.context_split import chunk_numbers, gathered_order
from megatron_ext.attention.kernels import attend, attend_backward, merge_


@dataclass(frozen=True)
class EqualSegments:
    """Neighbouring segments of equal length, which one call takes together."""

    count: int
    chunk: int
    """Tokens of one of the 2 * cp chunks of each."""
    rank_start: int
    whole_start: int

    def own(self, tokens: Tensor) -> Tensor:
        """[T, ...] in rank order -> view [count, 2, chunk, ...]: the early and the late chunk of each."""
        rows = tokens[self.rank_start : self.rank_start + self.count * 2 * self.chunk]
        return rows.view(self.count, 2, self.chunk, *tokens.shape[1:])

    def prefix(self, tokens: Tensor, num_chunks: int, cp_size: int) -> Tensor:
        """[W, ...] in whole order -> view [count, num_chunks * chunk, ...], the start of each."""
        length = 2 * cp_size * self.chunk
        rows = tokens[self.whole_start : self.whole_start + self.count * length]
        return rows.view(self.count, length, *tokens.shape[1:])[:, : num_chunks * self.chunk]


@dataclass(frozen=True)
class ContextPlan:
    """How one micro-batch is spread; made once for all layers."""

    group: dist.ProcessGroup
    size: int
    rank: int
    runs: tuple[EqualSegments, ...]
    whole_of_gathered_W: Tensor
    """int64 [W], the place in whole order of each token in gathered order."""
    gathered_of_whole_W: Tensor
    """int64 [W], its inverse."""
    cache: dict[str, Any] = field(default_factory=dict, compare=False)
    """State that a back end derives from the plan at its first layer."""


def plan_context(whole_cu_seqlens: Tensor, group: dist.ProcessGroup, device: torch.device) -> ContextPlan:
    """From int32 [S + 1] starts of the padded segments in whole order, on the CPU."""
    size, rank = group.size(), group.rank()
    whole_W = gathered_order(whole_cu_seqlens, size)
    starts = whole_cu_seqlens.tolist()
    runs: list[EqualSegments] = []
    for length, members in itertools.groupby(itertools.pairwise(starts), key=lambda pair: pair[1] - pair[0]):
        segments = list(members)
        if length:
            first = segments[0][0]
            runs.append(EqualSegments(len(segments), length // (2 * size), first // size, first))
    return ContextPlan(
        group=group,
        size=size,
        rank=rank,
        runs=tuple(runs),
        whole_of_gathered_W=whole_W.to(device),
        gathered_of_whole_W=whole_W.argsort().to(device),
    )


def attend_gathered(query_Thd: Tensor, key_Tgd: Tensor, value_Tgd: Tensor, scale: float, plan: ContextPlan) -> Tensor:
    """[T, h, d] in rank order, by gathering keys and values."""
    return _GatheredAttention.apply(query_Thd, key_Tgd, value_Tgd, scale, plan)  # type: ignore[return-value]


def attend_exchanged(
    query_Thd: Tensor,
    key_Tgd: Tensor,
    value_Tgd: Tensor,
    plan: ContextPlan,
    attend_whole: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """[T, h, d] in rank order; `attend_whole` attends in whole order from [W, h / cp, d] to [W, h / cp, d]."""
    num_query, num_key = query_Thd.size(1) // plan.size, key_Tgd.size(1) // plan.size
    # One exchange for all three: per receiving rank its query heads, then its key heads, then its value heads.
    by_rank = [x.unflatten(1, (plan.size, -1)) for x in (query_Thd, key_Tgd, value_Tgd)]
    sent = torch.cat(by_rank, dim=2).transpose(0, 1).flatten(0, 1)
    whole = exchange(sent, plan.group).index_select(0, plan.gathered_of_whole_W)
    output = attend_whole(*whole.split([num_query, num_key, num_key], dim=1))
    returned = exchange(output.index_select(0, plan.whole_of_gathered_W), plan.group)
    return returned.unflatten(0, (plan.size, -1)).transpose(0, 1).flatten(1, 2)


def gather_whole(tokens: Tensor, plan: ContextPlan) -> Tensor:
    """[T, ...] of this rank -> [W, ...] in whole order, without a gradient."""
    gathered = tokens.new_empty((plan.size * tokens.size(0), *tokens.shape[1:]))
    dist.all_gather_into_tensor(gathered, tokens.contiguous(), group=plan.group)
    return gathered.index_select(0, plan.gathered_of_whole_W)


def scatter_whole(grad_whole: Tensor, plan: ContextPlan) -> Tensor:
    """The sum over ranks of [W, ...] in whole order, this rank's [T, ...] of it: the gradient of `gather_whole`."""
    gathered = grad_whole.index_select(0, plan.whole_of_gathered_W)
    mine = gathered.new_empty((gathered.size(0) // plan.size, *gathered.shape[1:]))
    dist.reduce_scatter_tensor(mine, gathered, group=plan.group)
    return mine


def exchange(tokens: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[cp * n, ...]: part i goes to rank i, and comes back in rank order. Its gradient goes the same way back."""
    return _Exchange.apply(tokens, group)  # type: ignore[return-value]


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        received = torch.empty_like(tokens, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, tokens.contiguous(), group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        return exchange(grad_outputs[0], ctx.group), None


class _GatheredAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_Thd: Tensor, key_Tgd: Tensor, value_Tgd: Tensor, scale: float, plan: ContextPlan
    ) -> Tensor:
        own_T2gd = torch.cat([key_Tgd, value_Tgd], dim=1)
        whole_W2gd = gather_whole(own_T2gd, plan)
        output_Thd = query_Thd.new_empty(query_Thd.shape)
        # The kernels keep the log-sum-exp in float32, or in the precision of the inputs where that is higher.
        lse_Th = query_Thd.new_empty(query_Thd.shape[:2], dtype=torch.promote_types(query_Thd.dtype, torch.float32))
        for part in _parts(plan, query_Thd, own_T2gd, whole_W2gd):
            found, found_lse = attend(part.query, part.key, part.value, scale, part.is_causal)
            output, lse = part.places(output_Thd), part.lse_places(lse_Th)
            if part.is_causal:  # comes first, so the places hold nothing yet
                output.copy_(found)
                lse.copy_(found_lse)
            else:
                merge_(output, lse, found, found_lse)
        ctx.save_for_backward(query_Thd, own_T2gd, output_Thd, lse_Th)
        ctx.scale, ctx.plan = scale, plan
        return output_Thd

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Any
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query_Thd, own_T2gd, output_Thd, lse_Th = ctx.saved_tensors
        plan: ContextPlan = ctx.plan
        grad_Thd = grad_outputs[0].contiguous()
        whole_W2gd = gather_whole(own_T2gd, plan)
        grad_query_Thd = torch.zeros_like(query_Thd)
        grad_own_T2gd, grad_whole_W2gd = torch.zeros_like(own_T2gd), torch.zeros_like(whole_W2gd)
        gradients = _parts(plan, grad_query_Thd, grad_own_T2gd, grad_whole_W2gd)
        for part, gradient in zip(_parts(plan, query_Thd, own_T2gd, whole_W2gd), gradients, strict=True):
            grad_query, grad_key, grad_value = attend_backward(
                part.places(grad_Thd),
                part.query,
                part.key,
                part.value,
                part.places(output_Thd),
                part.lse_places(lse_Th),
                ctx.scale,
                part.is_causal,
            )
            gradient.query.add_(grad_query)
            gradient.key.add_(grad_key)
            gradient.value.add_(grad_value)
        grad_own_T2gd += scatter_whole(grad_whole_W2gd, plan)
        grad_key_Tgd, grad_value_Tgd = grad_own_T2gd.chunk(2, dim=1)
        return grad_query_Thd, grad_key_Tgd, grad_value_Tgd, None, None


@dataclass(frozen=True)
class _Part:
    """One kernel call: views [B, heads, length, d] of queries, keys and values."""

    query: Tensor
    key: Tensor
    value: Tensor
    is_causal: bool
    places: Callable[[Tensor], Tensor]
    """[T, h, d] -> the view of it where this part's queries stand."""

    def lse_places(self, lse_Th: Tensor) -> Tensor:
        """[T, h] -> view [B, h, length]."""
        return self.places(lse_Th.unsqueeze(-1)).squeeze(-1)


def _parts(plan: ContextPlan, query_Thd: Tensor, own_T2gd: Tensor, whole_W2gd: Tensor) -> list[_Part]:
    """Every chunk with itself, causally, then with the chunks before it."""
    parts = []
    for run in plan.runs:

        def both(tokens: Tensor, run: EqualSegments = run) -> Tensor:
            return run.own(tokens).flatten(0, 1).transpose(1, 2)

        key, value = both(own_T2gd).chunk(2, dim=1)
        parts.append(_Part(both(query_Thd), key, value, True, both))
        for which, number in enumerate(chunk_numbers(plan.size, plan.rank)):

            def one(tokens: Tensor, run: EqualSegments = run, which: int = which) -> Tensor:
                return run.own(tokens)[:, which].transpose(1, 2)

            if number:
                key, value = run.prefix(whole_W2gd, number, plan.size).transpose(1, 2).chunk(2, dim=1)
                parts.append(_Part(one(query_Thd), key, value, False, one))
    return parts
