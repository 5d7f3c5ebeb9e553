"""Attention of one block with its log-sum-exp, and its gradient: what merging partial attentions needs.

torch's fused kernels compute the log-sum-exp, but its public function keeps it. With it, attention over two sets of
keys merges exactly (`merge_`), and the gradient of a part is the kernel's own when it is given the merged output and
log-sum-exp (Liu et al. 2023, ring attention, arXiv 2310.01889). So nothing of size queries x keys is ever made.

Two uses: keys that come from other ranks (context_attention.py), and causal blocks on a CPU. There the kernel computes
whole squares of 512 keys and masks them, so a row of up to that length costs as much as without a mask; cutting it in
halves, again and again, skips most of the masked part: at 512 tokens it takes 0.8 of the time forward, 0.63 backward.

Shape legend: B blocks, h query heads, g key-value heads, L queries, K keys, d head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

UNCUT_LENGTH = 128
"""Causal blocks up to this length are one kernel call: below, calls cost more than the arithmetic they save."""

_aten = torch.ops.aten


def attend_causal(query_BhLd: Tensor, key_BgLd: Tensor, value_BgLd: Tensor, scale: float) -> Tensor:
    """[B, h, L, d] with a gradient; query i sees keys 0..i."""
    return _CausalAttention.apply(query_BhLd, key_BgLd, value_BgLd, scale)  # type: ignore[return-value]


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_BhLd: Tensor, key_BgLd: Tensor, value_BgLd: Tensor, scale: float) -> Tensor:
        output_BhLd, lse_BhL = attend(query_BhLd, key_BgLd, value_BgLd, scale, is_causal=True)
        ctx.save_for_backward(query_BhLd, key_BgLd, value_BgLd, output_BhLd, lse_BhL)
        ctx.scale = scale
        return output_BhLd

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Any
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        query_BhLd, key_BgLd, value_BgLd, output_BhLd, lse_BhL = ctx.saved_tensors
        grads = attend_backward(
            grad_outputs[0], query_BhLd, key_BgLd, value_BgLd, output_BhLd, lse_BhL, ctx.scale, is_causal=True
        )
        return *grads, None


def attend(
    query_BhLd: Tensor, key_BgKd: Tensor, value_BgKd: Tensor, scale: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """Output [B, h, L, d] and float log-sum-exp [B, h, L]. Causal means that query i sees keys 0..i.

    TypeError for float32 on CUDA, where no fused kernel takes grouped queries.
    """
    if is_causal and _is_worth_cutting(query_BhLd):
        return _attend_halves(query_BhLd, key_BgKd, value_BgKd, scale)
    if query_BhLd.device.type == "cpu":
        return _aten._scaled_dot_product_flash_attention_for_cpu(
            query_BhLd, key_BgKd, value_BgKd, 0.0, is_causal, scale=scale
        )
    _refuse_float32(query_BhLd)
    return _aten._scaled_dot_product_flash_attention(query_BhLd, key_BgKd, value_BgKd, 0.0, is_causal, scale=scale)[:2]


def attend_backward(
    grad_BhLd: Tensor,
    query_BhLd: Tensor,
    key_BgKd: Tensor,
    value_BgKd: Tensor,
    output_BhLd: Tensor,
    lse_BhL: Tensor,
    scale: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; output and log-sum-exp are the merged ones."""
    given = (grad_BhLd, query_BhLd, key_BgKd, value_BgKd, output_BhLd, lse_BhL)
    if is_causal and _is_worth_cutting(query_BhLd):
        return _halves_backward(*given, scale)
    if query_BhLd.device.type == "cpu":
        return _aten._scaled_dot_product_flash_attention_for_cpu_backward(*given, 0.0, is_causal, scale=scale)
    no_dropout = torch.zeros((), dtype=torch.int64, device=query_BhLd.device)
    return _aten._scaled_dot_product_flash_attention_backward(
        *given[:5],
        lse_BhL.contiguous(),
        None,
        None,
        query_BhLd.size(2),
        key_BgKd.size(2),
        0.0,
        is_causal,
        no_dropout,
        no_dropout,
        scale=scale,
    )


def merge_(output_BhLd: Tensor, lse_BhL: Tensor, other_BhLd: Tensor, other_lse_BhL: Tensor) -> None:
    """Adds the attention over other keys to `output_BhLd` and `lse_BhL`, in place."""
    merged_BhL = torch.logaddexp(lse_BhL, other_lse_BhL)
    share_BhL1 = (lse_BhL - merged_BhL).exp_().unsqueeze(-1)
    other_share_BhL1 = (other_lse_BhL - merged_BhL).exp_().unsqueeze(-1)
    output_BhLd.mul_(share_BhL1).add_(other_BhLd * other_share_BhL1)
    lse_BhL.copy_(merged_BhL)


def _is_worth_cutting(query_BhLd: Tensor) -> bool:
    """On a CPU, and where adding up parts does not round: the kernel adds up in float32 whatever it is given."""
    is_exact = query_BhLd.dtype in (torch.float32, torch.float64)
    return query_BhLd.device.type == "cpu" and is_exact and query_BhLd.size(2) > UNCUT_LENGTH


def _halves(length: int) -> tuple[slice, slice]:
    """The first is the largest power of two below `length`: kernels like such lengths."""
    cut = 1 << (length - 1).bit_length() - 1
    return slice(0, cut), slice(cut, length)


def _attend_halves(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Each half with itself, causally, and the second with the first in full."""
    output = torch.empty_like(query)
    lse = torch.empty_like(query[..., 0])
    early, late = _halves(query.size(2))
    for half in (early, late):
        part = attend(query[:, :, half], key[:, :, half], value[:, :, half], scale, is_causal=True)
        output[:, :, half], lse[:, :, half] = part
    across = attend(query[:, :, late], key[:, :, early], value[:, :, early], scale, is_causal=False)
    merge_(output[:, :, late], lse[:, :, late], *across)
    return output, lse


def _halves_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of `_attend_halves`."""
    totals = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    early, late = _halves(query.size(2))

    def given(queries: slice, keys: slice) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        key_value = key[:, :, keys], value[:, :, keys]
        return grad[:, :, queries], query[:, :, queries], *key_value, output[:, :, queries], lse[:, :, queries]

    for half in (early, late):
        for total, found in zip(totals, attend_backward(*given(half, half), scale, is_causal=True), strict=True):
            total[:, :, half] = found
    grad_query, grad_key, grad_value = attend_backward(*given(late, early), scale, is_causal=False)
    totals[0][:, :, late] += grad_query
    totals[1][:, :, early] += grad_key
    totals[2][:, :, early] += grad_value
    return totals


def _refuse_float32(query: Tensor) -> None:
    if query.dtype not in (torch.bfloat16, torch.float16):
        raise TypeError(
            f"context parallel attention on CUDA takes bfloat16 or float16, got {query.dtype}: "
            "set the dtype to bfloat16, or cp_comm to all_to_all"
        )
