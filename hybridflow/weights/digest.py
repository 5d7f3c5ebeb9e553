"""A hash of a tensor's bytes in their order, computed where the tensor lies: the same value on a CPU and on CUDA.

    words   the bytes, padded with zeros, as 64-bit little-endian integers w[0], w[1], ...; arithmetic is modulo 2^64
    fold    w + (w >> 32), a signed shift
    sum     of each COLUMNS words, the last may have fewer: a[0] fold(w[0]) + a[1] fold(w[1]) + ...
    mix     (x xor (x >> 32)) x MULTIPLIER, an unsigned shift, so that each x has another value
    digest  the mixed sums are words again, until one is left; then mix(that + number of bytes)

a holds the first COLUMNS numbers of SplitMix64 from SEED (Steele, Lea, Flood 2014), made odd. So one word that differs
changes the digest, and with it every bit. A plain sum of products forgets the upper bits of words, which products shift
out of it: folded, they count in the lower half too, and two words of a row that change, or are swapped, go unnoticed
once in about 2^32 cases. It is no signature: whoever wants to can make two tensors of one digest.

On CUDA nothing passes through the host but the digests (not run there yet). On a CPU it takes 1.4 times as long as a
CRC-32 (tests/bench/reshard.py), which therefore stays where parameters lie in the host's memory.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

SEED = 0x6879627269640001
COLUMNS = 4096
MULTIPLIER = 0x9FB21C651E98DF25
CPU_ROWS = 8
"""Folded at a time: they stay in a core's cache."""
CUDA_ROWS = 2048
"""64 MiB: what is taken beside the tensor."""
_ALL = 2**64 - 1


@torch.no_grad()
def digests(tensors: Sequence[Tensor]) -> list[int]:
    """Digests of tensors, 0 to 2^64 - 1; one copy from the device for all, which waits for what was started there."""
    if not tensors:
        return []
    return [value & _ALL for value in torch.stack([digest(tensor) for tensor in tensors]).tolist()]


@torch.no_grad()
def digest(tensor: Tensor) -> Tensor:
    """int64 scalar on the tensor's device, whose bits are the digest. Bytes count in row-major order, not the shape."""
    bytes_B = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    words_W = _mix(_sum_rows(_as_words(bytes_B)))
    while words_W.numel() > 1:
        words_W = _mix(_sum_rows(words_W))
    return _mix(words_W[0] + bytes_B.numel())


def _as_words(bytes_B: Tensor) -> Tensor:
    """One at least; copied only where they do not lie as words do."""
    size = bytes_B.numel()
    if size and size % 8 == 0 and bytes_B.data_ptr() % 8 == 0 and bytes_B.storage_offset() % 8 == 0:
        return bytes_B.view(torch.int64)
    padded_B = torch.zeros(max(8, -(-size // 8) * 8), dtype=torch.uint8, device=bytes_B.device)
    padded_B[:size].copy_(bytes_B)
    return padded_B.view(torch.int64)


def _sum_rows(words_W: Tensor) -> Tensor:
    """int64 [ceil(W / COLUMNS)]."""
    factors_C = _factors(words_W.device)
    whole = words_W.numel() // COLUMNS
    rows_RC, rest_W = words_W[: whole * COLUMNS].view(whole, COLUMNS), words_W[whole * COLUMNS :]
    on_cpu = words_W.device.type == "cpu"
    scratch_RC = torch.empty_like(rows_RC[: CPU_ROWS if on_cpu else CUDA_ROWS])
    sums_R = torch.empty(whole + bool(rest_W.numel()), dtype=torch.int64, device=words_W.device)
    for start in range(0, whole, len(scratch_RC) or 1):
        piece_RC = rows_RC[start : start + len(scratch_RC)]
        folded_RC = torch.bitwise_right_shift(piece_RC, 32, out=scratch_RC[: len(piece_RC)]).add_(piece_RC)
        sums = sums_R[start : start + len(piece_RC)]
        if on_cpu:  # elsewhere torch has no integer products of matrices
            torch.mv(folded_RC, factors_C, out=sums)
        else:
            torch.sum(folded_RC.mul_(factors_C), 1, out=sums)
    if rest_W.numel():
        sums_R[whole] = ((rest_W >> 32).add_(rest_W) * factors_C[: rest_W.numel()]).sum()
    return sums_R


def _mix(words_W: Tensor) -> Tensor:
    # torch's shift keeps the sign: the upper half is cleared.
    return (words_W ^ ((words_W >> 32) & 0xFFFFFFFF)) * _signed(MULTIPLIER)


@functools.cache
def _factors(device: torch.device) -> Tensor:
    values, state = [], SEED
    for _ in range(COLUMNS):
        state = (state + 0x9E3779B97F4A7C15) & _ALL
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _ALL
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _ALL
        values.append(_signed((z ^ (z >> 31)) | 1))
    return torch.tensor(values, dtype=torch.int64, device=device)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
