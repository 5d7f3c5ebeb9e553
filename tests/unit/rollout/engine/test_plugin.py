"""Seeds of completions, and the hash that turns them into random numbers."""

from __future__ import annotations

import importlib.util
from types import ModuleType, SimpleNamespace

import pytest
import torch

from hybridflow.rollout.cpu import IMPORT_PATH
from hybridflow.rollout.engine.plugin import pass_sampling_seeds
from hybridflow.rollout.engine.sglang_messages import completion_seed


@pytest.mark.parametrize(
    ("run_seed", "completion_id", "seed"),
    [
        (0, "t00001-g0000-c00", 1517376202),
        (0, "t00001-g0000-c01", 1072346627),
        (1, "t00001-g0000-c00", 2024764188),
    ],
)
def test_a_seed_never_changes(run_seed: int, completion_id: str, seed: int) -> None:
    """The completions of every recorded run follow from these values."""
    assert completion_seed(run_seed, completion_id) == seed


def test_seeds_are_distinct_and_fit_a_signed_word() -> None:
    ids = [f"t{step:05d}-g{group:04d}-c{n:02d}" for step in range(10) for group in range(16) for n in range(8)]
    seeds = {completion_seed(run_seed, completion_id) for run_seed in (0, 1) for completion_id in ids}
    assert len(seeds) == 2 * len(ids)
    assert all(0 <= seed < 2**31 for seed in seeds)


def murmur3_x86_32(data: bytes) -> int:
    """Austin Appleby's reference, seed 0, for lengths that divide by 4."""

    def rotate(x: int, r: int) -> int:
        return ((x << r) | (x >> (32 - r))) & 0xFFFFFFFF

    h = 0
    for at in range(0, len(data), 4):
        k = int.from_bytes(data[at : at + 4], "little") * 0xCC9E2D51 & 0xFFFFFFFF
        h = (rotate(h ^ (rotate(k, 15) * 0x1B873593 & 0xFFFFFFFF), 13) * 5 + 0xE6546B64) & 0xFFFFFFFF
    h ^= len(data)
    h = (h ^ (h >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    h = (h ^ (h >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ (h >> 16)


def test_the_reference_gives_published_values() -> None:
    """Known test vectors of MurmurHash3_x86_32 with seed 0."""
    assert murmur3_x86_32(b"") == 0
    assert murmur3_x86_32(b"test") == 0xBA6BD213
    assert murmur3_x86_32(b"\x00\x00\x00\x00") == 0x2362F9DE
    assert murmur3_x86_32(b"\xff\xff\xff\xff") == 0x76293B50


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    """The module that SGLang imports as `sgl_kernel` on a CPU."""
    spec = importlib.util.spec_from_file_location("sgl_kernel_on_cpu", IMPORT_PATH / "sgl_kernel/__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hash_of_seed_position_and_token(kernels: ModuleType) -> None:
    seeds, positions, tokens = [0, 1, 2**31 - 1, 2**40 + 7], [0, 17, 32_767, 5], [0, 1, 999, 151_935]
    found = kernels.murmur_hash32(torch.tensor(seeds), torch.tensor(positions), torch.tensor(tokens))
    expected = [
        [
            murmur3_x86_32(seed.to_bytes(8, "little") + position.to_bytes(4, "little") + token.to_bytes(4, "little"))
            for token in tokens
        ]
        for seed, position in zip(seeds, positions, strict=True)
    ]
    assert found.dtype == torch.uint32
    assert found.tolist() == expected


def test_hash_is_registered_where_sglang_calls_it(kernels: ModuleType) -> None:
    one = torch.tensor([1])
    called = torch.ops.sgl_kernel.murmur_hash32_cpu(one, one, one)
    assert called.tolist() == kernels.murmur_hash32(one, one, one).tolist()


def test_other_kernels_say_that_they_are_not_there(kernels: ModuleType) -> None:
    with pytest.raises(NotImplementedError, match=r"sgl_kernel.rmsnorm_cpu has no CPU build"):
        kernels.rmsnorm_cpu(1)


def batch_of(seeds: list[int | None]) -> SimpleNamespace:
    return SimpleNamespace(reqs=[SimpleNamespace(sampling_params=SimpleNamespace(sampling_seed=s)) for s in seeds])


def test_the_plugin_hands_seeds_on() -> None:
    info = pass_sampling_seeds(SimpleNamespace(sampling_seed=None), type, batch_of([5, 2**31 - 1]))
    assert info.sampling_seed.dtype == torch.int64
    assert info.sampling_seed.tolist() == [5, 2**31 - 1]


def test_the_plugin_leaves_a_batch_with_a_request_without_seed_alone() -> None:
    info = pass_sampling_seeds(SimpleNamespace(sampling_seed=None), type, batch_of([5, None]))
    assert info.sampling_seed is None
