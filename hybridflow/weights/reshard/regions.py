"""Rectangles of matrices, and what each rectangle of a shard holds of the model's tensors.

Every tensor is seen as a matrix: its last dimension is the columns, all others together the rows; a vector [n] is a
column of n rows. No tensor is cut in a way that this cannot say: along its first dimensions, or along its last.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class Region(NamedTuple):
    """A rectangle: `rows` x `cols` elements, the first at (`row`, `col`)."""

    row: int
    col: int
    rows: int
    cols: int

    @property
    def size(self) -> int:
        return self.rows * self.cols

    def overlap(self, other: Region) -> Region | None:
        """The rectangle that both cover, or None."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        rows = min(self.row + self.rows, other.row + other.rows) - row
        cols = min(self.col + self.cols, other.col + other.cols) - col
        return Region(row, col, rows, cols) if rows > 0 and cols > 0 else None

    def contains(self, other: Region) -> bool:
        return self.overlap(other) == other

    def moved(self, rows: int, cols: int) -> Region:
        return Region(self.row + rows, self.col + cols, self.rows, self.cols)


class Segment(NamedTuple):
    """A rectangle of a shard that holds a rectangle of one tensor of the model, in the same order of elements."""

    region: Region
    """In the shard."""
    tensor: str
    """Hugging Face name."""
    row: int
    """Row of the tensor that stands in the region's first row."""
    col: int

    @property
    def origin(self) -> Region:
        """The same rectangle in the tensor."""
        return Region(self.row, self.col, self.region.rows, self.region.cols)


@dataclass(frozen=True)
class Shard:
    """A parameter of one rank. What no segment covers is padding."""

    name: str
    shape: tuple[int, ...]
    segments: tuple[Segment, ...]
    """One under the other."""
    padding: tuple[Region, ...] = ()
    """Elements that stand for nothing in the model and have to be zero."""

    @property
    def cols(self) -> int:
        return self.shape[-1] if len(self.shape) > 1 else 1

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        return self.size // self.cols

    @cached_property
    def _first_rows(self) -> list[int]:
        return [segment.region.row for segment in self.segments]

    def meaning(self, region: Region) -> tuple[str, Region] | None:
        """The tensor of the model, and its rectangle, that stand in `region`; None if they are not of one segment."""
        index = bisect_right(self._first_rows, region.row) - 1
        if index < 0 or not self.segments[index].region.contains(region):
            return None
        inner, tensor, row, col = self.segments[index]
        return tensor, region.moved(row - inner.row, col - inner.col)


def find_overlap(regions: Iterable[Region]) -> tuple[Region, Region] | None:
    """Two of the rectangles that share an element, or None. A sweep over the rows; no element is looked at."""
    active: list[Region] = []
    for region in sorted(regions):
        active = [other for other in active if other.row + other.rows > region.row]
        for other in active:
            if region.overlap(other):
                return other, region
        active.append(region)
    return None
