"""Which library and which attention are taken: from what is installed, here packages of stand-ins on the path."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from megatron_ext.attention import cuda as attention_cuda
from megatron_ext.attention.cuda import CudnnAttention, TransformerEngineAttention, VarlenAttention, choose_attention
from megatron_ext.kernels.choice import Kernels, KernelsError, resolve_kernels

CUDA = torch.device("cuda")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes packages that can be found, and must not be run."""

    def make(*names: str) -> None:
        for name in names:
            folder = tmp_path / name
            folder.mkdir(parents=True, exist_ok=True)
            for part in (folder, *folder.parents):
                if part == tmp_path:
                    break
                (part / "__init__.py").write_text("raise RuntimeError('it was imported')\n")
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield make
    assert not {name for name in set(sys.modules) - before if name.startswith(("apex", "transformer", "flash_attn"))}


APEX = ("apex/optimizers", "amp_C", "fused_layer_norm_cuda", "fused_weight_gradient_mlp_cuda")
ENGINE = ("transformer_engine/pytorch",)


def test_auto_is_the_best_of_what_is_installed(packages: Any) -> None:
    assert resolve_kernels("auto", on_cuda=True) == Kernels("torch", "auto")
    packages(*APEX)
    assert resolve_kernels("auto", on_cuda=True) == Kernels("apex", "auto")
    packages(*ENGINE)
    assert resolve_kernels("auto", on_cuda=True) == Kernels("transformer_engine", "auto")
    packages("flash_attn/cute")
    assert resolve_kernels("auto", on_cuda=True) == Kernels("transformer_engine", "varlen")
    assert resolve_kernels("auto", "sdpa", on_cuda=True) == Kernels("transformer_engine", "sdpa")
    assert resolve_kernels("auto", on_cuda=False) == Kernels("torch", "auto")
    assert resolve_kernels("transformer_engine", on_cuda=True).attention == "auto"  # named, it computes attention too


@pytest.mark.parametrize(
    ("choice", "there", "message"),
    [
        ("apex", (), r'kernels = "apex": NVIDIA apex is not installed here .*unrelated project\). Remedy: build'),
        ("apex", ("apex",), "NVIDIA apex is not installed here"),  # the registry's, which has no such part
        ("apex", APEX[:2], "installed without fused_layer_norm_cuda, fused_weight_gradient_mlp_cuda. Remedy: build"),
        ("transformer_engine", (), r"not installed here. Remedy: pip install 'hybridflow\[gpu\]'.*, or set kernels = "),
        ("apx", (), "kernels = 'apx': it must be one of auto, torch, transformer_engine, apex"),
    ],
)
def test_a_named_one_that_is_missing_is_an_error(packages: Any, choice: Any, there: Any, message: str) -> None:
    packages(*there)
    with pytest.raises(KernelsError, match=message):
        resolve_kernels(choice, on_cuda=True)


def test_what_is_loaded_already_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert resolve_kernels("auto", on_cuda=True).library == "transformer_engine"
    monkeypatch.delitem(sys.modules, "transformer_engine.pytorch")
    assert resolve_kernels("auto", on_cuda=True).library == "torch"


def test_what_is_said() -> None:
    assert Kernels("torch", "auto").describe() == (
        "Adam: torch, RMSNorm: torch, gradient accumulation: torch (not fused), attention: torch"
    )
    assert Kernels("apex", "cudnn").describe() == (
        "Adam: Apex, RMSNorm: Apex, gradient accumulation: Apex, attention: cudnn"
    )


class Registry:
    """Torch's, with the versions that load."""

    def __init__(self, **refused: Exception) -> None:
        self.refused = refused
        self.active: str | None = None

    def current_flash_attention_impl(self) -> str | None:
        return self.active

    def activate_flash_attention_impl(self, name: str) -> None:
        if name in self.refused:
            raise self.refused[name]
        self.active = name


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Any:
    """(major compute capability, versions installed, the registry) for what follows."""

    def use(major: int, installed: list[str], **refused: Exception) -> Registry:
        made = Registry(**refused)
        for name in ("current_flash_attention_impl", "activate_flash_attention_impl"):
            monkeypatch.setattr(torch.nn.attention, name, getattr(made, name))
        monkeypatch.setattr(attention_cuda, "installed_flash", lambda: installed)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
        return made

    return use


@pytest.mark.parametrize(
    ("major", "installed", "version", "module"),
    [
        (9, ["FA3", "FA4"], "FA3", VarlenAttention),
        (9, ["FA4"], "FA4", VarlenAttention),
        (10, ["FA3", "FA4"], "FA4", VarlenAttention),
        (10, ["FA3"], None, CudnnAttention),
        (9, [], None, CudnnAttention),
        (8, ["FA3", "FA4"], None, VarlenAttention),
    ],
)
def test_attention_left_open(registry: Any, major: int, installed: list[str], version: str | None, module: Any) -> None:
    """FlashAttention 3 or 4 where there is one for the GPU, else cuDNN from Hopper on, else FlashAttention 2."""
    made = registry(major, installed)
    assert choose_attention("auto", CUDA, torch.bfloat16) is module
    assert made.active == version


def test_attention_of_transformer_engine_and_attention_that_is_named(registry: Any) -> None:
    made = registry(9, ["FA3"])
    assert choose_attention("auto", CUDA, torch.bfloat16, "transformer_engine") is TransformerEngineAttention
    assert choose_attention("cudnn", CUDA, torch.bfloat16, "transformer_engine") is CudnnAttention
    assert made.active is None
    assert choose_attention("varlen", CUDA, torch.bfloat16, "transformer_engine") is VarlenAttention
    assert made.active == "FA3"
    assert choose_attention("auto", CUDA, torch.float32) is attention_cuda.SegmentAttention


def test_a_version_that_does_not_load_is_told_and_the_next_taken(
    registry: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made = registry(9, ["FA3", "FA4"], FA3=RuntimeError("no kernels for this torch"))
    with caplog.at_level(logging.WARNING):
        assert attention_cuda.activate_flash(9) == "FA4"
    assert "FA3 is installed and torch cannot use it: no kernels for this torch" in caplog.text
    made.refused["FA4"] = RuntimeError("asked again")
    assert attention_cuda.activate_flash(9) == "FA4"  # as it is active


def test_an_older_torch_has_no_choice(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    registry(9, ["FA3"])
    monkeypatch.delattr(torch.nn.attention, "activate_flash_attention_impl")
    assert attention_cuda.activate_flash(9) is None


def test_cudnn_is_asked_first_and_gives_the_same_on_a_cpu() -> None:
    """The next kernel computes what it does not take: on a CPU that is all."""
    attention = CudnnAttention.__new__(CudnnAttention)
    torch.nn.Module.__init__(attention)
    attention.softmax_scale = 0.5
    query, key, value = (torch.randn(1, heads, 6, 8) for heads in (4, 2, 2))
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=0.5, enable_gqa=True
    )
    torch.testing.assert_close(attention.attend_block(query, key, value), expected)
