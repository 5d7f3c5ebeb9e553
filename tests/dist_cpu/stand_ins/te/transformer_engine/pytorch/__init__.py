import torch

from transformer_engine import CALLS


class RMSNorm(torch.nn.Module):
    """With an extra state, as the operation of Transformer Engine has."""

    def __init__(self, normalized_shape, *, eps=1e-5, dtype=None, device=None):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.empty(normalized_shape, dtype=dtype, device=device))

    def get_extra_state(self):
        return torch.empty(0)

    def forward(self, x):
        CALLS["rms_norm"] += 1
        return torch.nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
