"""Causal attention within each segment of a packed micro-batch.

Shape legend: T packed tokens, B segments of a block, L their padded length, h query heads, g key-value heads, d head
dim. Scores exist within segments only; there is never a T x T mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_ext import platform
from megatron_ext.segments import SegmentBlock, plan_blocks

platform.install()

from megatron.core.packed_seq_params import PackedSeqParams  # noqa: E402
from megatron.core.transformer.enums import AttnMaskType  # noqa: E402
from megatron.core.transformer.module import MegatronModule  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402


@dataclass
class PackedSegments(PackedSeqParams):
    """Segments of one packed micro-batch, as every attention layer of a forward pass needs them.

    `qkv_format` is "sbhd" on purpose. For "thd" Megatron would rebuild the rotary angles from cu_seqlens in a Python
    loop per layer, restarting at 0 in each segment; as sbhd with batch 1 it takes the angles that the model made from
    the position ids, which may go on from a prompt held elsewhere.
    """

    blocks: tuple[SegmentBlock, ...] = ()
    inverse_index_T: Tensor | None = None
    """int64 [T], where in the blocks' concatenated outputs each token is; None when that is the identity."""


def build_packed_segments(cu_seqlens: Tensor, max_seqlen: int, device: torch.device) -> PackedSegments:
    """Plans the attention of a micro-batch once, for all layers, from int32 [S+1] `cu_seqlens` on the CPU."""
    blocks, inverse_index_T = plan_blocks(cu_seqlens.tolist())
    return PackedSegments(
        qkv_format="sbhd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_kv=max_seqlen,
        blocks=tuple(block.to(device) for block in blocks),
        inverse_index_T=None if inverse_index_T is None else inverse_index_T.to(device),
    )


class SegmentAttention(MegatronModule):
    """Core attention of a layer: torch's scaled dot product attention over blocks of segments, with grouped queries.

    It has no parameters, so nothing of it is in a checkpoint.
    """

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
        outputs = [self._attend(query, key, value, block) for block in packed_seq_params.blocks]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        if packed_seq_params.inverse_index_T is not None:
            output = output.index_select(0, packed_seq_params.inverse_index_T)
        return output.unsqueeze(1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, block: SegmentBlock) -> Tensor:
        """[B * L, h * d] of one block."""
        query_BhLd, key_BgLd, value_BgLd = (block.take(x) for x in (query, key, value))
        output_BhLd = F.scaled_dot_product_attention(
            query_BhLd,
            key_BgLd,
            value_BgLd,
            is_causal=True,
            scale=self.softmax_scale,
            enable_gqa=query_BhLd.size(1) != key_BgLd.size(1),
        )
        return output_BhLd.transpose(1, 2).reshape(block.count * block.length, -1)
