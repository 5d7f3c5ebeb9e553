"""The digest of a tensor's bytes: against plain integers, and for what must not go unnoticed."""

from __future__ import annotations

import random

import pytest
import torch

from hybridflow.weights import digest as module
from hybridflow.weights.digest import COLUMNS, MULTIPLIER, SEED, digest, digests

ALL = 2**64 - 1


def by_hand(data: bytes) -> int:
    """The formula of the docstring in Python's integers."""
    factors, state = [], SEED
    for _ in range(COLUMNS):
        state = (state + 0x9E3779B97F4A7C15) & ALL
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & ALL
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & ALL
        factors.append((z ^ (z >> 31)) | 1)

    def fold(w: int) -> int:
        return w + ((w - 2**64 if w >= 2**63 else w) >> 32)

    def mix(x: int) -> int:
        return ((x ^ (x >> 32)) * MULTIPLIER) & ALL

    padded = data + bytes(-len(data) % 8 if data else 8)
    words = [int.from_bytes(padded[i : i + 8], "little") for i in range(0, len(padded), 8)]
    while True:
        rows = [words[i : i + COLUMNS] for i in range(0, len(words), COLUMNS)]
        words = [mix(sum(a * fold(w) for a, w in zip(factors, row, strict=False)) & ALL) for row in rows]
        if len(words) == 1:
            return mix((words[0] + len(data)) & ALL)


def drawn(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 4096, 8 * COLUMNS, 8 * COLUMNS + 8, 3 * 8 * COLUMNS - 5])
def test_it_is_the_formula_on_a_cpu_and_in_the_pieces_of_cuda(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_B = drawn(size)
    expected = by_hand(bytes(bytes_B.tolist()))
    assert digests([bytes_B]) == [expected]

    def products(rows_RC: torch.Tensor, factors_C: torch.Tensor, out: torch.Tensor) -> None:
        torch.sum(rows_RC.mul_(factors_C), 1, out=out)

    monkeypatch.setattr(torch, "mv", products)  # what CUDA does
    monkeypatch.setattr(module, "CPU_ROWS", 2)
    assert digests([bytes_B]) == [expected]


def test_bytes_count_and_not_how_they_lie() -> None:
    bytes_B = drawn(6 * 1000 + 2)
    whole = digests([bytes_B[2:]])
    assert digests([bytes_B[2:].clone().view(torch.bfloat16), bytes_B[2:].clone().view(3, 2, 1000)]) == whole * 2
    matrix = torch.randn(30, 50, dtype=torch.float64)
    assert digests([matrix.t()]) == digests([matrix.t().contiguous()]) != digests([matrix])
    assert digests([torch.tensor(3.0)]) == digests([torch.tensor([3.0])])
    assert digests([]) == []


def test_every_bit_counts() -> None:
    bytes_B = drawn(8 * COLUMNS + 24)
    before = int(digest(bytes_B))
    seen = {before}
    places = sorted({*range(16), *random.Random(0).sample(range(len(bytes_B)), 200), len(bytes_B) - 1})
    for place in places:
        for bit in range(8):
            bytes_B[place] ^= 1 << bit
            seen.add(int(digest(bytes_B)))
            bytes_B[place] ^= 1 << bit
    assert len(seen) == 1 + 8 * len(places)
    assert int(digest(bytes_B)) == before


def test_two_bits_count_also_the_uppermost() -> None:
    """In a plain sum of products the upper bits of two words of a row undo each other."""
    words_W = drawn(16 * COLUMNS * 4).view(torch.int64)
    before = int(digest(words_W))
    draw = random.Random(3)
    for bit in (63, 62, 61, 48, 47, 32, 31, 0):
        for _ in range(20):
            mask = torch.tensor(1).bitwise_left_shift(bit)
            pair = draw.sample(range(COLUMNS), 2)
            words_W[pair] ^= mask
            assert int(digest(words_W)) != before, (bit, pair)
            words_W[pair] ^= mask
    assert int(digest(words_W)) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_order_counts(dtype: torch.dtype) -> None:
    """Elements, rows and blocks swapped; near and far, within a word, within a row and between rows."""
    values = torch.randn(16, 3000, generator=torch.Generator().manual_seed(1)).to(dtype)
    flat, before = values.view(-1), int(digest(values))
    draw = random.Random(2)
    pairs = [(i, i + step) for i in range(20) for step in (1, 2, 4, 4096, 8192)]
    pairs += [(draw.randrange(len(flat)), draw.randrange(len(flat))) for _ in range(300)]
    for i, k in pairs:
        if flat[i] != flat[k]:
            flat[[i, k]] = flat[[k, i]]
            assert int(digest(values)) != before, (i, k)
            flat[[i, k]] = flat[[k, i]]
    assert int(digest(values)) == before
    for other in (values.flip(0), values.flip(1), values.roll(1, 0), values.roll(4, 1), values.t().contiguous()):
        assert int(digest(other)) != before


def test_zeros_of_different_lengths_differ() -> None:
    assert len({int(digest(torch.zeros(count))) for count in (0, 1, 2, 3, 5000, 100_000)}) == 6
    assert module.COLUMNS * 8 == 32 * 2**10
