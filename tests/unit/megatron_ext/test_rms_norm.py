"""The norm with its gradient written out, against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megatron_ext.model.norms import rms_norm


def test_by_hand() -> None:
    """Mean square of (3, 4) is 12.5; the gradient of the first output is w / s * (1 - x0^2 / 25, -x0 x1 / 25)."""
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([2.0, 10.0], dtype=torch.float64, requires_grad=True)
    out = rms_norm(x, weight, 0.0)
    root = 12.5**0.5
    torch.testing.assert_close(out[0], torch.tensor([6 / root, 40 / root], dtype=torch.float64))
    grad_x, grad_weight = torch.autograd.grad(out[0, 0], (x, weight))
    torch.testing.assert_close(grad_x[0], torch.tensor([2 / root * 16 / 25, -2 / root * 12 / 25], dtype=torch.float64))
    torch.testing.assert_close(grad_weight, torch.tensor([3 / root, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("shape", [(5, 1, 16), (5, 1, 3, 8), (0, 1, 8)])
def test_output_and_gradients_are_those_of_torch(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape[-1], dtype=torch.float64, requires_grad=True)
    grad = torch.randn(shape, dtype=torch.float64).transpose(0, -1).contiguous().transpose(0, -1)  # any strides
    found, expected = rms_norm(x, weight, 1e-5), F.rms_norm(x, weight.shape, weight, 1e-5)
    torch.testing.assert_close(found, expected)
    pairs = (torch.autograd.grad(out, (x, weight), grad) for out in (found, expected))
    for mine, torchs in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, torchs)


def test_slices_of_a_larger_tensor_are_taken() -> None:
    x = torch.randn(4, 1, 24)[..., 4:12].unflatten(-1, (2, 4)).requires_grad_()
    weight = torch.ones(4, requires_grad=True)
    out = rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(out, F.rms_norm(x, (4,), weight, 1e-6))
    torch.autograd.grad(out.sum(), (x, weight))


def test_lower_precision_is_left_to_torch() -> None:
    x, weight = torch.randn(3, 8, dtype=torch.bfloat16), torch.ones(8, dtype=torch.bfloat16)
    assert torch.equal(rms_norm(x, weight, 1e-6), F.rms_norm(x, (8,), weight, 1e-6))
