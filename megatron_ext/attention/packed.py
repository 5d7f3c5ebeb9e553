"""Causal attention within each segment of a packed micro-batch, on one rank or spread over context parallel ranks.

Shape legend: T tokens of this rank, W of all context parallel ranks (T without context parallel), B segments of a
block, L their padded length, h query heads, g key-value heads, d head dim. Scores exist within segments only; there is
never a T x T mask, and memory is linear in T.

What a layer attends to is data, not code: `PackedSegments` says which tokens are neighbours and the model takes each
token's position as an input, so other segment layouts need no other module.

A call per segment costs more than the arithmetic when segments are short, so segments of similar length are padded to
a common one and form a block, which one call takes. Padding goes at the end: under a causal mask no real token sees it,
and outputs there are dropped, so the result and the gradients of real tokens are those of separate calls.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
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

platform.install()

from megatron.core.packed_seq_params import PackedSeqParams  # noqa: E402
from megatron.core.transformer.enums import AttnMaskType  # noqa: E402
from megatron.core.transformer.module import MegatronModule  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

MIN_FILL = 0.75
"""A segment joins a block when it fills at least this part of the block's length: at most 44% wasted arithmetic."""


@dataclass(frozen=True)
class SegmentBlock:
    """`count` segments of padded length `length`; their tokens are one slice of the pack, or picked by `index`."""

    count: int
    length: int
    start: int
    index: Tensor | None = None
    """int64 [count * length], pack position of each place; padding repeats the segment's last token."""

    def take(self, packed: Tensor) -> Tensor:
        """[T, heads, d] -> [count, heads, length, d], without a copy where the tokens are one slice."""
        if self.index is None:
            rows = packed[self.start : self.start + self.count * self.length]
        else:
            rows = packed.index_select(0, self.index)
        return rows.unflatten(0, (self.count, self.length)).transpose(1, 2)

    def to(self, device: torch.device) -> SegmentBlock:
        return self if self.index is None else dataclasses.replace(self, index=self.index.to(device))


def plan_blocks(cu_seqlens: Sequence[int]) -> tuple[list[SegmentBlock], Tensor | None]:
    """Blocks that cover every segment once, and the int64 [T] place of each token in their concatenation.

    The second is None when the blocks leave the tokens where they are. Empty segments are ignored.
    """
    segments = [(start, end - start) for start, end in itertools.pairwise(cu_seqlens) if end > start]
    in_order = [_slice_block(run) for run in _equal_runs(segments)]
    if len(in_order) <= 2:
        return in_order, None

    blocks, places = [], torch.empty(cu_seqlens[-1], dtype=torch.int64)
    offset = 0
    for members in _similar_lengths(segments):
        block = _picked_block(members)
        blocks.append(block)
        for row, (start, length) in enumerate(members):
            first = offset + row * block.length
            places[start : start + length] = torch.arange(first, first + length)
        offset += block.count * block.length
    return blocks, places


def _equal_runs(segments: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Neighbouring segments of equal length, together."""
    runs: list[list[tuple[int, int]]] = []
    for segment in segments:
        if runs and runs[-1][0][1] == segment[1]:
            runs[-1].append(segment)
        else:
            runs.append([segment])
    return runs


def _similar_lengths(segments: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Segments by falling length, cut where one would fill too little of the block's first."""
    groups: list[list[tuple[int, int]]] = []
    for segment in sorted(segments, key=lambda segment: (-segment[1], segment[0])):
        if groups and segment[1] >= MIN_FILL * groups[-1][0][1]:
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


def _slice_block(run: list[tuple[int, int]]) -> SegmentBlock:
    start, length = run[0]
    return SegmentBlock(count=len(run), length=length, start=start)


def _picked_block(members: list[tuple[int, int]]) -> SegmentBlock:
    longest = members[0][1]
    index = torch.cat([start + torch.arange(longest).clamp(max=length - 1) for start, length in members])
    return SegmentBlock(count=len(members), length=longest, start=members[0][0], index=index)


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
    routing: Any = None
    """The `model.routing_replay.Routing` of its tokens, for the layers with experts; None: their routers decide."""


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
