"""Causal attention within each segment of a packed micro-batch, on one rank or spread over context parallel ranks.

Shape legend: T tokens of this rank, W of all context parallel ranks (T without context parallel), B segments of a
block, L their padded length, h query heads, g key-value heads, d head dim. Scores exist within segments only; there is
never a T x T mask, and memory is linear in T.

What a layer attends to is data, not code: `PackedSegments` says which tokens are neighbours and the model takes each
token's position as an input, so other segment layouts need no other module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megatron_ext import platform
from megatron_ext.attention.context_attention import ContextPlan, attend_exchanged, attend_gathered, plan_context
from megatron_ext.attention.context_split import RankBatch
from megatron_ext.attention.kernels import attend_causal
from megatron_ext.attention.rotary import RotaryTable, rotate
from megatron_ext.attention.segments import SegmentBlock, plan_blocks

platform.install()

from megatron.core.packed_seq_params import PackedSeqParams  # noqa: E402
from megatron.core.transformer.enums import AttnMaskType  # noqa: E402
from megatron.core.transformer.module import MegatronModule  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

A2A = "a2a"
"""Megatron's name for trading tokens against heads, in `cp_comm_type`."""


@dataclass
class PackedSegments(PackedSeqParams):
    """Segments of one packed micro-batch, as every attention layer of a forward pass needs them.

    The rotation by position is applied here, not by Megatron: for packed sequences that would rebuild the angles from
    cu_seqlens in a Python loop per layer, restarting at 0 in each segment. The table comes from the position ids that
    the model is given, which may go on from a prompt held elsewhere. `qkv_format` is "sbhd", with batch 1.
    """

    blocks: tuple[SegmentBlock, ...] = ()
    """How the segments in whole order are computed."""
    inverse_index_W: Tensor | None = None
    """int64 [W], where in the blocks' concatenated outputs each token is; None when that is the identity."""
    context: ContextPlan | None = None
    """How the segments are spread over ranks; None when this rank has them whole."""
    rotary: RotaryTable | None = None
    """Positions of this rank's tokens; None leaves queries and keys as they are."""


def build_packed_segments(rank_batch: RankBatch, cp_group: dist.ProcessGroup, device: torch.device) -> PackedSegments:
    """Plans the attention of a micro-batch once, for all layers."""
    whole_cu_seqlens = rank_batch.whole_cu_seqlens
    blocks, inverse_index_W = plan_blocks(whole_cu_seqlens.tolist())
    longest = int(whole_cu_seqlens.diff().max())
    on_device = whole_cu_seqlens.to(device, non_blocking=True)
    return PackedSegments(
        qkv_format="sbhd",
        cu_seqlens_q=on_device,
        cu_seqlens_kv=on_device,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        blocks=tuple(block.to(device) for block in blocks),
        inverse_index_W=None if inverse_index_W is None else inverse_index_W.to(device),
        context=plan_context(whole_cu_seqlens, cp_group, device) if cp_group.size() > 1 else None,
    )


class PackedAttention(MegatronModule):
    """Core attention of a layer, whatever computes it. It has no parameters, so nothing of it is in a checkpoint."""

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {}

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSegments | None = None,
    ) -> Tensor:
        """query [T, 1, h, d], key and value [T, 1, g, d] -> [T, 1, h * d]. TypeError without PackedSegments."""
        if not isinstance(packed_seq_params, PackedSegments):
            raise TypeError(f"packed_seq_params must be PackedSegments, got {type(packed_seq_params).__name__}")
        query, key, value = query[:, 0], key[:, 0], value[:, 0]
        if packed_seq_params.rotary is not None:
            query, key = (rotate(x, packed_seq_params.rotary) for x in (query, key))
        output_Thd = self.attend(query, key, value, packed_seq_params)
        return output_Thd.reshape(output_Thd.size(0), 1, -1)

    def attend(self, query_Thd: Tensor, key_Tgd: Tensor, value_Tgd: Tensor, segments: PackedSegments) -> Tensor:
        """[T, h, d], all in rank order."""
        raise NotImplementedError


class SegmentAttention(PackedAttention):
    """Torch's scaled dot product attention over blocks of segments, with grouped queries."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        **unused: Any,
    ) -> None:
        super().__init__(config=config)
        self.softmax_scale = 1.0 / math.sqrt(config.kv_channels) if softmax_scale is None else softmax_scale
        self.trades_heads = config.cp_comm_type == A2A

    def attend(self, query_Thd: Tensor, key_Tgd: Tensor, value_Tgd: Tensor, segments: PackedSegments) -> Tensor:
        if segments.context is None:
            return self.attend_whole(query_Thd, key_Tgd, value_Tgd, segments)
        if self.trades_heads:
            attend_heads = partial(self.attend_whole, segments=segments)
            return attend_exchanged(query_Thd, key_Tgd, value_Tgd, segments.context, attend_heads)
        return self.attend_part(query_Thd, key_Tgd, value_Tgd, segments.context)

    def attend_whole(self, query_Whd: Tensor, key_Wgd: Tensor, value_Wgd: Tensor, segments: PackedSegments) -> Tensor:
        """[W, h, d], all in whole order."""
        outputs = [self._attend_block(query_Whd, key_Wgd, value_Wgd, block) for block in segments.blocks]
        output_Whd = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        if segments.inverse_index_W is not None:
            output_Whd = output_Whd.index_select(0, segments.inverse_index_W)
        return output_Whd

    def attend_part(self, query_Thd: Tensor, key_Tgd: Tensor, value_Tgd: Tensor, context: ContextPlan) -> Tensor:
        """[T, h, d], all in rank order."""
        return attend_gathered(query_Thd, key_Tgd, value_Tgd, self.softmax_scale, context)

    def _attend_block(self, query_Whd: Tensor, key_Wgd: Tensor, value_Wgd: Tensor, block: SegmentBlock) -> Tensor:
        """[B * L, h, d] of one block."""
        output_BhLd = self.attend_block(*(block.take(x) for x in (query_Whd, key_Wgd, value_Wgd)))
        return output_BhLd.transpose(1, 2).flatten(0, 1)

    def attend_block(self, query_BhLd: Tensor, key_BgLd: Tensor, value_BgLd: Tensor) -> Tensor:
        """[B, h, L, d], causal within each of B segments of equal length."""
        if query_BhLd.device.type == "cpu":
            return attend_causal(query_BhLd, key_BgLd, value_BgLd, self.softmax_scale)
        return F.scaled_dot_product_attention(
            query_BhLd,
            key_BgLd,
            value_BgLd,
            is_causal=True,
            scale=self.softmax_scale,
            enable_gqa=query_BhLd.size(1) != key_BgLd.size(1),
        )
