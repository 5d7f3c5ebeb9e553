"""Stands in for SGLang's compiled CPU kernels, whose build needs AMX.

SGLang imports many names from here at start-up and checks for AMX before it calls them; they raise when called. One
kernel is called without that check, by the seeded sampler: `murmur_hash32_cpu`, given here in torch operations.
"""

from typing import NoReturn

import torch

__version__ = "0.0.0+cpu.without.amx"

_LOW_32 = 0xFFFFFFFF


def _rotate_left(x: torch.Tensor, bits: int) -> torch.Tensor:
    return ((x << bits) | (x >> (32 - bits))) & _LOW_32


def _mix_block(state: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    block = (block * 0xCC9E2D51) & _LOW_32
    block = (_rotate_left(block, 15) * 0x1B873593) & _LOW_32
    return (_rotate_left(state ^ block, 13) * 5 + 0xE6546B64) & _LOW_32


def murmur_hash32(seed: torch.Tensor, positions: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """MurmurHash3 x86_32 of the 16 bytes (seed low, seed high, position, column), initial state 0.

    seed [N] 64-bit, positions [N], columns [M]; result uint32 [N, M]. Computed in int64, whose products wrap modulo
    2^64, so the low 32 bits are exact. The same function as SGLang's Triton kernel
    (sglang/kernels/ops/sampling/murmur_hash.py).
    """
    seed, positions, columns = seed.to(torch.int64), positions.to(torch.int64), columns.to(torch.int64)
    state = _mix_block(torch.zeros_like(seed), seed & _LOW_32)
    state = _mix_block(state, (seed >> 32) & _LOW_32)
    state = _mix_block(state, positions & _LOW_32)
    hashed = _mix_block(state[:, None], columns[None, :] & _LOW_32) ^ 16
    hashed = ((hashed ^ (hashed >> 16)) * 0x85EBCA6B) & _LOW_32
    hashed = ((hashed ^ (hashed >> 13)) * 0xC2B2AE35) & _LOW_32
    return (hashed ^ (hashed >> 16)).to(torch.uint32)


_library = torch.library.Library("sgl_kernel", "DEF")
_library.define("murmur_hash32_cpu(Tensor seed, Tensor positions, Tensor col_indices) -> Tensor")
_library.impl("murmur_hash32_cpu", murmur_hash32, "CPU")


class _Kernel:
    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{self.__name__} has no CPU build here")


def __getattr__(name: str) -> _Kernel:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Kernel(name)
