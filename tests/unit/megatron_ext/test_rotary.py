"""The rotation by position in low precision: tables in float32, one rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_ext.attention.rotary import build_rotary_table, rotate

POSITIONS = torch.tensor([0, 1, 777, 65_535])
FREQUENCIES = 10_000.0 ** -(torch.arange(0, 32).float() / 32)


def turn_in_float64(heads: Tensor, sign: float) -> Tensor:
    """By the same float32 angles."""
    angles = torch.outer(POSITIONS.float(), FREQUENCIES).double()[:, None]
    first, second = heads.double().chunk(2, dim=-1)
    cos, sin = angles.cos(), sign * angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def test_by_hand() -> None:
    """At position 1 with frequency 1 the unit vector (1, 0) becomes (cos 1, sin 1)."""
    table = build_rotary_table(torch.tensor([1]), torch.tensor([1.0]), torch.float32)
    turned = rotate(torch.tensor([[[1.0, 0.0]]]), table)
    torch.testing.assert_close(turned, torch.tensor([[[0.5403023, 0.8414710]]]))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_tables_are_float32_or_better(dtype: torch.dtype, expected: torch.dtype) -> None:
    table = build_rotary_table(POSITIONS, FREQUENCIES, dtype)
    assert table.cos.dtype == table.signed_sin.dtype == expected


def test_bfloat16_is_rounded_once_forward_and_backward() -> None:
    """Nearly every element is the nearest bfloat16 to the exact one; with tables in bfloat16 it is one in two."""
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(4, 8, 64, generator=generator).bfloat16().requires_grad_()
    grad = torch.randn(4, 8, 64, generator=generator).bfloat16()
    turned = rotate(heads, build_rotary_table(POSITIONS, FREQUENCIES, torch.bfloat16))
    turned.backward(grad)
    assert heads.grad is not None and turned.dtype == heads.grad.dtype == torch.bfloat16
    for found, exact in ((turned, turn_in_float64(heads.detach(), 1.0)), (heads.grad, turn_in_float64(grad, -1.0))):
        assert (found != exact.bfloat16()).float().mean() < 0.002
