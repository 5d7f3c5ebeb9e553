"""RMSNorm by each library, as one module: the same parameter, mark and name in checkpoints, whoever computes.

Apex and Transformer Engine are tested through stand-ins on a CPU; not run on a GPU yet.

On a CPU torch has no kernel for RMSNorm: forward and backward are some twenty operations, of which most of the time is
allocation and passes over memory. There, in float32 and above, the gradient is written out, in two products of a matrix
and a vector and four passes: 0.4 of the time, 3% of a training step of a small model. Elsewhere, and in lower
precision, it is torch's.

Shape legend: T rows (tokens, or tokens x heads), H normalised size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_ext import platform
from megatron_ext.kernels.choice import Library

platform.install()

from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402


def rms_norm(x: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension, [..., H] -> [..., H].

    Zhang and Sennrich 2019, arXiv 1910.07467.
    """
    if x.device.type == "cpu" and x.dtype == weight_H.dtype in (torch.float32, torch.float64):
        return _RMSNorm.apply(x, weight_H, epsilon)  # type: ignore[return-value]
    return F.rms_norm(x, weight_H.shape, weight_H, epsilon)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.size(-1)).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight_H, scale)
        return (x * scale).mul_(weight_H)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Any
    ) -> tuple[Tensor, Tensor, None]:
        """With s = 1 / sqrt(mean(x^2) + epsilon): dx = s w g - x s^3 sum(w g x) / H, and dw sums s g x over rows."""
        grad: Tensor = grad_outputs[0]
        x, weight_H, scale = ctx.saved_tensors
        product_TH = (grad * x).reshape(-1, x.size(-1))
        scale_T = scale.reshape(-1)
        along_T = torch.mv(product_TH, weight_H).mul_(scale_T.pow(3)).div_(-x.size(-1))
        grad_x = (grad * weight_H).mul_(scale).addcmul_(x, along_T.view(scale.shape))
        return grad_x, torch.mv(product_TH.t(), scale_T), None


class TokenRMSNorm(torch.nn.RMSNorm):
    """RMSNorm over the hidden size, for tokens that may be spread over tensor parallel ranks; computed by torch.

    Megatron's own wrapper refuses sequence parallel. All it takes is the mark on the weight: each rank then has the
    gradient of its own tokens, and Megatron adds them up over the ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.epsilon = eps
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H] in the dtype of `x`."""
        return rms_norm(x, self.weight, self.epsilon)


class ApexRMSNorm(TokenRMSNorm):
    """By Apex's fused kernel."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__(config, hidden_size, eps)
        from apex.normalization.fused_layer_norm import fused_rms_norm_affine

        self.compute = fused_rms_norm_affine

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, self.weight, self.weight.shape, self.epsilon)


class TransformerEngineRMSNorm(TokenRMSNorm):
    """By Transformer Engine's fused kernel."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__(config, hidden_size, eps)
        from transformer_engine.pytorch import RMSNorm

        inner = RMSNorm(hidden_size, eps=eps, dtype=config.params_dtype, device=self.weight.device)
        inner.weight = self.weight
        # In a tuple it is no submodule: its parameter is ours, and its extra state for FP8 is in no checkpoint.
        self.inner = (inner,)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner[0](x)


NORMS: dict[Library, type[TokenRMSNorm]] = {
    "torch": TokenRMSNorm,
    "apex": ApexRMSNorm,
    "transformer_engine": TransformerEngineRMSNorm,
}
