"""Cuts a packed micro-batch for one context parallel rank, and finds its tokens again. No Megatron here.

Every segment is padded to 2 * cp chunks of equal length. Rank r takes chunks r and 2 * cp - 1 - r of each, one from the
front and one from the back (zig-zag): under a causal mask every rank then has the same arithmetic, whatever the length.

Three orders of tokens:

    whole      segments one after another, each in its own order, padding included
    rank       what one rank holds: per segment its early chunk, then its late one
    gathered   the ranks' tokens one rank after another, as collectives deliver them

Shape legend: T tokens of this rank, W = cp * T tokens of all, S segments, N predicted positions of the micro-batch, R
of those the ones on this rank.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ext.packing.micro_batch import MicroBatch


@dataclass(frozen=True)
class RankBatch:
    """One rank's part of a micro-batch."""

    micro_batch: MicroBatch
    """In rank order. Segments are this rank's chunks; predicted positions and loss inputs are those on this rank."""
    whole_cu_seqlens: Tensor
    """int32 [S + 1] on the CPU, where each padded segment starts in whole order."""
    predicted_R: Tensor
    """int64 [R] on the CPU, which rows of the micro-batch's `predict_index_N` these are."""


def cut_micro_batch(micro_batch: MicroBatch, cp_size: int, cp_rank: int, pad_to_multiple: int = 1) -> RankBatch:
    """The part of rank `cp_rank`, with a multiple of `pad_to_multiple` tokens.

    Targets come from the whole row, so a token at the border of a chunk still predicts its successor, which another
    rank holds. Padding stands behind each segment: it predicts nothing and no real token attends to it.

    Two rows over two ranks, prompts a b c d and p, responses e f and q r. A row becomes 2 * cp = 4 chunks, of
    ceil(6 / 4) = 2 tokens and of ceil(3 / 4) = 1; `.` is padding, and > a position whose successor is predicted:

        packed             a  b  c >d >e  f   >p >q  r         predict_index_N  3 4 6 7, targets_N  e f q r
        chunks             0     1     2     3      0  1  2  3
        whole              a  b | c  d | e  f | .  .    p | q | r | .       whole_cu_seqlens  0 8 12
        rank 0 (0 and 3)   a  b | .  .    >p | .       cu_seqlens  0 2 4 5 6, predict_index_N  4, targets_N  q
        rank 1 (1 and 2)   c >d |>e  f    >q | r       cu_seqlens  0 2 4 5 6, predict_index_N  1 2 4, targets_N  e f r

    p is on rank 0 and predicts q, which rank 1 holds. Of the four predictions rank 0 has number 2, rank 1 the numbers
    0, 1 and 3: `predicted_R`.
    """
    if cp_size == 1:
        padded = _pad_end(micro_batch, pad_to_multiple)
        return RankBatch(padded, padded.cu_seqlens, torch.arange(micro_batch.predict_index_N.numel()))

    cu_seqlens = micro_batch.cu_seqlens.long()
    lengths = cu_seqlens.diff()
    chunks = -(-lengths // (2 * cp_size))
    # A last segment of nothing but padding fills the rank up; chunks come in pairs.
    fill = -2 * int(chunks.sum()) % math.lcm(2, pad_to_multiple) // 2
    if fill:
        lengths, chunks = (torch.cat([x, x.new_tensor([last])]) for x, last in ((lengths, 0), (chunks, fill)))
    whole_cu_seqlens = _starts(chunks * 2 * cp_size)

    whole_T = rank_order(whole_cu_seqlens, cp_size, cp_rank)
    segment_T = torch.searchsorted(whole_cu_seqlens, whole_T, right=True) - 1
    offset_T = whole_T - whole_cu_seqlens[segment_T]
    is_real_T = offset_T < lengths[segment_T]
    source_T = torch.where(is_real_T, cu_seqlens.clamp(max=cu_seqlens[-1] - 1)[segment_T] + offset_T, 0)

    rank_index_N, owner_N = _locate(micro_batch.predict_index_N, cu_seqlens, chunks, cp_size)
    predicted_R = (owner_N == cp_rank).nonzero()[:, 0]
    part = MicroBatch(
        tokens_T=micro_batch.tokens_T[source_T] * is_real_T,
        position_ids_T=micro_batch.position_ids_T[source_T] * is_real_T,
        cu_seqlens=_starts(chunks.repeat_interleave(2)).to(torch.int32),
        max_seqlen=int(chunks.max()),
        predict_index_N=rank_index_N[predicted_R],
        targets_N=micro_batch.targets_N[predicted_R],
        rows=micro_batch.rows.select(predicted_R),
        loss_inputs={name: value[predicted_R] for name, value in micro_batch.loss_inputs.items()},
        ragged_inputs={name: value.select(predicted_R) for name, value in micro_batch.ragged_inputs.items()},
        routed_experts=micro_batch.routed_experts and micro_batch.routed_experts.take(source_T, is_real_T),
    )
    return RankBatch(part, whole_cu_seqlens.to(torch.int32), predicted_R)


def rank_order(whole_cu_seqlens: Tensor, cp_size: int, cp_rank: int) -> Tensor:
    """int64 [T], the place in whole order of each token of a rank."""
    pieces = []
    for start, stop in zip(whole_cu_seqlens[:-1].tolist(), whole_cu_seqlens[1:].tolist(), strict=True):
        chunk = (stop - start) // (2 * cp_size)
        pieces += [start + number * chunk + torch.arange(chunk) for number in chunk_numbers(cp_size, cp_rank)]
    return torch.cat(pieces)


def gathered_order(whole_cu_seqlens: Tensor, cp_size: int) -> Tensor:
    """int64 [W], the place in whole order of each token in gathered order."""
    return torch.cat([rank_order(whole_cu_seqlens, cp_size, rank) for rank in range(cp_size)])


def chunk_numbers(cp_size: int, cp_rank: int) -> tuple[int, int]:
    """The early and the late chunk of a rank."""
    return cp_rank, 2 * cp_size - 1 - cp_rank


def _locate(whole_N: Tensor, cu_seqlens: Tensor, chunks: Tensor, cp_size: int) -> tuple[Tensor, Tensor]:
    """Place in rank order, and rank, of positions of the unpadded micro-batch; int64 [N] each."""
    segment_N = torch.searchsorted(cu_seqlens, whole_N, right=True) - 1
    chunk_N = chunks[segment_N]
    offset_N = whole_N - cu_seqlens[segment_N]
    number_N = offset_N // chunk_N.clamp(min=1)
    is_late_N = number_N >= cp_size
    owner_N = torch.where(is_late_N, 2 * cp_size - 1 - number_N, number_N)
    rank_starts = _starts(2 * chunks)
    return rank_starts[segment_N] + is_late_N * chunk_N + offset_N % chunk_N.clamp(min=1), owner_N


def _pad_end(micro_batch: MicroBatch, multiple: int) -> MicroBatch:
    """With one more segment of padding where the tokens are no multiple."""
    padding = -micro_batch.num_tokens % multiple
    if not padding:
        return micro_batch
    tail = micro_batch.tokens_T.new_zeros(padding)
    return dataclasses.replace(
        micro_batch,
        tokens_T=torch.cat([micro_batch.tokens_T, tail]),
        position_ids_T=torch.cat([micro_batch.position_ids_T, tail]),
        cu_seqlens=torch.cat([micro_batch.cu_seqlens, micro_batch.cu_seqlens[-1:] + padding]),
        max_seqlen=max(micro_batch.max_seqlen, padding),
        routed_experts=micro_batch.routed_experts and micro_batch.routed_experts.pad(padding),
    )


def _starts(lengths: Tensor) -> Tensor:
    """int64 [S + 1] from int64 [S]."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
