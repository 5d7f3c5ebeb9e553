"""RMSNorm by each library, as one module: the same parameter, mark and name in checkpoints, whoever computes.

Apex and Transformer Engine are tested through stand-ins on a CPU; not run on a GPU yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ext import platform
from megatron_ext.kernels.choice import Library
from megatron_ext.model.rms_norm import rms_norm

platform.install()

from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402


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
