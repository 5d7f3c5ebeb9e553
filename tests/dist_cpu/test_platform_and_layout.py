"""The CPU platform and the checks made before any process group."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from megatron_ext import platform
from megatron_ext.hf.config import HFConfig
from megatron_ext.layout import Layout, LayoutError, check_layout
from megatron_ext.platform import patches
from megatron_ext.platform.import_hook import MegatronImportHook

needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="the platform does nothing with CUDA")

MODEL = HFConfig(
    model_type="qwen3",
    num_layers=6,
    hidden_size=64,
    ffn_hidden_size=96,
    num_heads=8,
    num_kv_heads=4,
    head_dim=8,
    vocab_size=101,
    max_position_embeddings=128,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    tied_embeddings=True,
    qk_norm=True,
    qkv_bias=False,
)


@needs_no_cuda
def test_install_twice_hooks_once() -> None:
    platform.install()
    platform.install()
    assert sum(isinstance(finder, MegatronImportHook) for finder in sys.meta_path) == 1


@needs_no_cuda
def test_megatron_sees_a_cpu_and_the_rest_sees_torch() -> None:
    platform.install()
    import megatron.core.parallel_state as parallel_state

    stand_in = parallel_state.torch
    assert stand_in is not torch
    assert stand_in.zeros(2, device="cuda").device.type == "cpu"
    assert stand_in.empty(1, device=stand_in.cuda.current_device()).device.type == "cpu"
    assert stand_in.nn is torch.nn


@needs_no_cuda
def test_a_random_state_forks_and_comes_back() -> None:
    platform.install()
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    tracker = CudaRNGStatesTracker()
    tracker.add("one", 5)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with tracker.fork("one"):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with tracker.fork("one"):
        second = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.cat([first, second]), torch.rand(6))


@pytest.mark.parametrize(
    ("module_name", "symbol"),
    [
        ("megatron.core.jit", "disable_jit_fuser"),
        ("megatron.core.tensor_parallel.random", "_get_cuda_rng_state"),
        ("megatron.core.optimizer.distrib_optimizer", "DistributedOptimizer"),
    ],
)
def test_a_missing_symbol_is_named(module_name: str, symbol: str) -> None:
    with pytest.raises(platform.PlatformError, match=f"{module_name}.{symbol} does not exist"):
        patches.PATCHES[module_name](types.ModuleType(module_name))


def test_another_version_is_refused() -> None:
    with pytest.raises(platform.PlatformError, match=r"megatron-core 9\.9 is installed, supported: 0\.16\.1"):
        platform.check_version("9.9")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(tp=3), r"tp = 3: it must divide the model's 8 attention heads; choose one of 1, 2, 4, 8"),
        (Layout(tp=8), r"tp = 8: it must divide the model's 4 key-value heads; choose one of 1, 2, 4"),
        (Layout(pp=4), r"pp = 4: it must divide the model's 6 layers; choose one of 1, 2, 3, 6"),
        (Layout(dp=0), r"dp = 0: a parallel size must be at least 1"),
        (Layout(sequence_parallel=True), r"sequence_parallel = true: it needs tp > 1"),
    ],
)
def test_a_layout_that_does_not_fit_says_why(layout: Layout, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        check_layout(layout, MODEL)


def test_a_layout_that_fits_passes() -> None:
    layout = Layout(tp=4, pp=2, dp=3, sequence_parallel=True)
    check_layout(layout, MODEL)
    assert layout.world_size == 24
    assert layout.pad_to_multiple == 4
