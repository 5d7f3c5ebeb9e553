"""Attention of one block with its log-sum-exp, and its gradient: what merging partial attentions needs.

torch's fused kernels compute the log-sum-exp, but its public function keeps it. With it, attention over two sets of
keys merges exactly (`merge_`), and the gradient of a part is the kernel's own when it is given the merged output and
log-sum-exp (Liu et al. 2023, ring attention, arXiv 2310.01889). So nothing of size queries x keys is ever made.

Shape legend: B blocks, h query heads, g key-value heads, L queries, K keys, d head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

_aten = torch.ops.aten


def attend(
    query_BhLd: Tensor, key_BgKd: Tensor, value_BgKd: Tensor, scale: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """Output [B, h, L, d] and float log-sum-exp [B, h, L]. Causal means that query i sees keys 0..i.

    TypeError for float32 on CUDA, where no fused kernel takes grouped queries.
    """
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
    if query_BhLd.device.type == "cpu":
        return _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_BhLd, query_BhLd, key_BgKd, value_BgKd, output_BhLd, lse_BhL, 0.0, is_causal, scale=scale
        )
    no_dropout = torch.zeros((), dtype=torch.int64, device=query_BhLd.device)
    return _aten._scaled_dot_product_flash_attention_backward(
        grad_BhLd,
        query_BhLd,
        key_BgKd,
        value_BgKd,
        output_BhLd,
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


def _refuse_float32(query: Tensor) -> None:
    if query.dtype not in (torch.bfloat16, torch.float16):
        raise TypeError(
            f"context parallel attention on CUDA takes bfloat16 or float16, got {query.dtype}: "
            "set the dtype to bfloat16, or cp_comm to all_to_all"
        )
