"""Rotates queries and keys by their positions, with tables that all layers share.

Megatron's own rotation, without Transformer Engine, computes cosines and sines again for the queries and keys of every
layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and sines of T tokens, head dim D: [T, 1, D] each, float32, or float64 for float64 queries and keys."""

    cos: Tensor
    signed_sin: Tensor
    """Negative in the first half of D: the second half of a head, moved to the front, is multiplied by it."""


def build_rotary_table(position_ids_T: Tensor, frequencies: Tensor, dtype: torch.dtype) -> RotaryTable:
    """From int64 [T] positions and float32 [D / 2] frequencies, for queries and keys of `dtype`.

    Angles, cosines and sines are float32: in bfloat16 each has an error of up to 1/256, and the engine has none.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    angles_T1F = torch.outer(position_ids_T.to(torch.float32), frequencies.to(torch.float32)).unsqueeze(1)
    cos, sin = angles_T1F.cos().to(dtype), angles_T1F.sin().to(dtype)
    return RotaryTable(cos=torch.cat((cos, cos), dim=-1), signed_sin=torch.cat((-sin, sin), dim=-1))


def rotate(heads_ThD: Tensor, table: RotaryTable) -> Tensor:
    """[T, h, D]: element i and element i + D / 2 of a head turned by its angle i (Su et al. 2021, arXiv 2104.09864).

    Computed in the dtype of the table and rounded once.
    """
    return _Rotate.apply(heads_ThD, table)  # type: ignore[return-value]


class _Rotate(torch.autograd.Function):
    """Keeps nothing but the table; the gradient is the rotation backwards."""

    @staticmethod
    def forward(ctx: Any, heads_ThD: Tensor, table: RotaryTable) -> Tensor:
        ctx.table = table
        wide_ThD = heads_ThD.to(table.cos.dtype)
        return _swap_halves(wide_ThD).mul_(table.signed_sin).add_(wide_ThD * table.cos).to(heads_ThD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_ThD: Tensor = grad_outputs[0]
        table: RotaryTable = ctx.table
        wide_ThD = grad_ThD.to(table.cos.dtype)
        turned_ThD = (wide_ThD * table.cos).sub_(_swap_halves(wide_ThD).mul_(table.signed_sin))
        return turned_ThD.to(grad_ThD.dtype), None


def _swap_halves(heads_ThD: Tensor) -> Tensor:
    first, second = heads_ThD.chunk(2, dim=-1)
    return torch.cat((second, first), dim=-1)
