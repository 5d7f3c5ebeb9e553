"""The CPU platform and the checks made before any process group."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import megatron_ext
from megatron_ext import platform
from megatron_ext.attention.cuda import AttentionBackendError, choose_attention
from megatron_ext.attention.packed import SegmentAttention
from megatron_ext.hf.config import HFConfig
from megatron_ext.parallel.layout import Layout, LayoutError, check_layout
from megatron_ext.parallel.topology import init_distributed
from megatron_ext.platform.patch import MegatronImportHook

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


def forget_megatron(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has neither installed the platform nor imported Megatron, until the test ends."""
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])
    for name in [name for name in sys.modules if name.startswith("megatron.core")]:
        monkeypatch.delitem(sys.modules, name)


def test_nothing_is_done_where_cuda_and_transformer_engine_are(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_megatron(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    engine = types.ModuleType("transformer_engine")
    engine.__spec__ = importlib.machinery.ModuleSpec("transformer_engine", None)
    monkeypatch.setitem(sys.modules, "transformer_engine", engine)
    cuda = torch.Tensor.cuda
    platform.install()
    assert sys.meta_path == [importlib.machinery.PathFinder]
    assert torch.Tensor.cuda is cuda


def test_with_cuda_alone_only_the_name_that_transformer_engine_would_bring_is_added(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forget_megatron(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    platform.install()
    hook = sys.meta_path[0]
    assert isinstance(hook, MegatronImportHook)
    module = types.ModuleType("megatron.core.jit")
    module.__dict__["torch"] = torch
    hook.fit(module)
    assert module.__dict__["torch"] is torch
    with pytest.raises(platform.PlatformError, match=r"moe_utils\.RouterGatingLinearFunction\.forward does not exist"):
        hook.fit(types.ModuleType("megatron.core.transformer.moe.moe_utils"))


@needs_no_cuda
def test_megatron_imported_before_the_platform_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import megatron.core

    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])
    with pytest.raises(platform.PlatformError, match=rf"{megatron.core.__name__} was imported before .*call install"):
        platform.install()


@needs_no_cuda
def test_megatron_sees_a_cpu_and_the_rest_sees_torch() -> None:
    platform.install()
    import megatron.core.parallel_state as parallel_state

    stand_in = parallel_state.torch
    assert stand_in is not torch
    assert stand_in.zeros(2, device="cuda").device.type == "cpu"
    assert stand_in.empty(1, device=stand_in.cuda.current_device()).device.type == "cpu"
    assert stand_in.nn is torch.nn


def test_every_module_installs_the_platform_before_it_imports_megatron() -> None:
    """So whichever a worker imports first, Megatron comes after."""
    (folder,) = megatron_ext.__path__
    for path in Path(folder).rglob("*.py"):
        before, imports, _ = path.read_text().partition("\nfrom megatron.core")
        assert not imports or "\nplatform.install()\n" in before, path


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


def test_another_version_is_refused() -> None:
    with pytest.raises(platform.PlatformError, match=r"megatron-core 9\.9 is installed, supported: 0\.16\.1"):
        platform.check_version("9.9")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(tp=3), r"tp = 3: it must divide the model's 8 attention heads; choose one of 1, 2, 4$"),
        (Layout(tp=8), r"tp = 8: it must divide the model's 4 key-value heads; choose one of 1, 2, 4"),
        (Layout(pp=4), r"pp = 4: it must divide the model's 6 layers; choose one of 1, 2, 3, 6"),
        (Layout(dp=0), r"dp = 0: a parallel size must be at least 1"),
        (Layout(sequence_parallel=True), r"sequence_parallel = true: it needs tp > 1"),
        (Layout(cp=0), r"cp = 0: a parallel size must be at least 1"),
        (Layout(vpp=2), r"vpp = 2: it splits pipeline stages, so it needs pp > 1; set vpp = 1 or raise pp"),
        (Layout(pp=2, vpp=2), r"vpp = 2: it must divide the model's 3 layers of a pipeline stage; choose one of 1, 3"),
        (
            Layout(cp=8, cp_comm="all_to_all"),
            r"cp = 8: it must divide the model's 4 key-value heads of a rank; choose one of 1, 2, 4 or cp_comm = .",
        ),
        (
            Layout(tp=4, cp=2, cp_comm="all_to_all"),
            r"cp = 2: it must divide the model's 1 key-value heads of a rank; choose one of 1 or cp_comm",
        ),
        (Layout(cp_comm="ring"), r"cp_comm = 'ring': it must be one of all_gather, all_to_all"),  # type: ignore[arg-type]
        (Layout(recompute="some"), r"recompute = 'some': it must be one of none, full, selective"),  # type: ignore[arg-type]
    ],
)
def test_a_layout_that_does_not_fit_says_why(layout: Layout, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        check_layout(layout, MODEL)


def test_another_number_of_processes_is_refused_before_any_group_is_made() -> None:
    layout = Layout(tp=2, pp=2, vpp=2, cp=3)
    with pytest.raises(LayoutError, match=r"tp x cp x dp x pp = 2 x 3 x 1 x 2 = 12: it must equal the 8 processes"):
        init_distributed(0, 8, "127.0.0.1", 1, layout, seed=1)
    assert not torch.distributed.is_initialized()


@needs_no_cuda
@pytest.mark.parametrize("backend", ["varlen", "transformer_engine"])
def test_an_attention_that_cannot_run_here_is_refused(backend: Any) -> None:
    with pytest.raises(
        AttentionBackendError, match=rf'attention = "{backend}": it needs CUDA, this is cpu; use "sdpa"'
    ):
        choose_attention(backend, torch.device("cpu"), torch.bfloat16)
    assert choose_attention("auto", torch.device("cpu"), torch.bfloat16) is SegmentAttention


def test_a_layout_that_fits_passes() -> None:
    layout = Layout(tp=4, pp=2, dp=3, sequence_parallel=True)
    check_layout(layout, MODEL)
    assert layout.world_size == 24
    assert layout.pad_to_multiple == 4
