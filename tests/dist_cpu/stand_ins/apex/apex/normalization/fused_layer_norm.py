import torch

from apex import CALLS


def fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6, memory_efficient=False):
    CALLS["rms_norm"] += 1
    assert input.dtype == weight.dtype
    return torch.nn.functional.rms_norm(input, normalized_shape, weight, eps)
