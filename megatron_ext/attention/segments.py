"""Groups the segments of a packed micro-batch into blocks that one attention call can take.

A call per segment costs more than the arithmetic when segments are short, so segments of similar length are padded to
a common one. Padding goes at the end: under a causal mask no real token sees it, and outputs there are dropped, so the
result and the gradients of real tokens are those of separate calls.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
